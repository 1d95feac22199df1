//! Every kind of disk that is tested, made in memory by the library itself.

use std::sync::Arc;

use uuid::Uuid;
use vhdkit::disk::{Layer, open_image};
use vhdkit::image::{CreateParameters, DiskType, Format, IdentifierSource, ParentLink};
use vhdkit::storage::{MemoryStorage, Storage};
use vhdkit::verbs::new_builder;
use vhdkit::{Result, VirtualDisk};

use crate::guest::{GuestOp, Shape, follow_discard};
use crate::model::blank;
use crate::rng::Rng;

const MIB: u64 = 1 << 20;

/// A kind of disk. Sizes are in bytes.
#[derive(Clone, Debug)]
pub struct Variant {
    /// The file format.
    pub format: Format,
    /// How the leaf takes space.
    pub disk_type: DiskType,
    /// Size of the disk.
    pub virtual_size: u64,
    /// Unit of allocation; `None` is the format's default.
    pub block_size: Option<u64>,
    /// Logical sector size.
    pub sector_size: u32,
    /// Images in the chain; above 1 the leaf is differencing.
    pub depth: usize,
}

impl Variant {
    fn new(format: Format, disk_type: DiskType, virtual_size: u64) -> Self {
        Self {
            format,
            disk_type,
            virtual_size,
            block_size: None,
            sector_size: 512,
            depth: if disk_type == DiskType::Differencing {
                2
            } else {
                1
            },
        }
    }

    fn block(mut self, block_size: u64) -> Self {
        self.block_size = Some(block_size);
        self
    }

    fn sectors(mut self, sector_size: u32) -> Self {
        self.sector_size = sector_size;
        self
    }

    fn depth(mut self, depth: usize) -> Self {
        self.depth = depth;
        self
    }

    /// Small disks with small blocks, of every format and type, with odd ends, both sector sizes and chains of up to
    /// four images: for tests that read the whole disk many times.
    pub fn small() -> Vec<Self> {
        use DiskType::{Differencing, Dynamic, Fixed};
        use Format::{Raw, Vhd, Vhdx};
        vec![
            Self::new(Raw, Fixed, 3 * MIB + 512),
            Self::new(Vhd, Fixed, 3 * MIB + 512),
            Self::new(Vhd, Dynamic, 5 * MIB + 1536).block(512 * 1024),
            Self::new(Vhd, Dynamic, 5 * MIB),
            Self::new(Vhd, Differencing, 3 * MIB + 512).block(512 * 1024),
            Self::new(Vhd, Differencing, 5 * MIB).depth(4),
            Self::new(Vhdx, Fixed, 3 * MIB + 512).block(MIB),
            Self::new(Vhdx, Dynamic, 5 * MIB + 512).block(MIB),
            Self::new(Vhdx, Dynamic, 6 * MIB + 4096)
                .block(2 * MIB)
                .sectors(4096),
            Self::new(Vhdx, Differencing, 4 * MIB + 512).block(MIB),
            Self::new(Vhdx, Differencing, 4 * MIB)
                .block(MIB)
                .sectors(4096),
            Self::new(Vhdx, Differencing, 5 * MIB)
                .block(2 * MIB)
                .depth(4),
        ]
    }

    /// Large and default-shaped disks: offsets beyond 2^31, 2^32 and 2^40, several chunks of sector bitmaps, the
    /// largest disks of each format.
    pub fn large() -> Vec<Self> {
        use DiskType::{Differencing, Dynamic};
        use Format::{Raw, Vhd, Vhdx};
        const GIB: u64 = 1 << 30;
        const TIB: u64 = 1 << 40;
        vec![
            Self::new(Raw, DiskType::Fixed, 2 * TIB + 512),
            Self::new(Vhd, Dynamic, 2040 * GIB),
            Self::new(Vhd, Differencing, 9 * GIB + 512),
            Self::new(Vhdx, Dynamic, 2 * TIB + 512).block(MIB),
            Self::new(Vhdx, Dynamic, 64 * TIB),
            Self::new(Vhdx, Dynamic, 100 * GIB)
                .block(256 * MIB)
                .sectors(4096),
            Self::new(Vhdx, Differencing, 2 * TIB + 512).block(2 * MIB),
            Self::new(Vhdx, Differencing, 80 * GIB)
                .block(32 * MIB)
                .sectors(4096)
                .depth(3),
        ]
    }

    /// A name that says it all, for messages.
    pub fn name(&self) -> String {
        format!(
            "{} {} of {:#x} bytes, blocks {}, sectors {}, chain of {}",
            self.format.name(),
            self.disk_type.name(),
            self.virtual_size,
            self.block_size
                .map_or_else(|| "default".into(), |b| format!("{} KiB", b / 1024)),
            self.sector_size,
            self.depth
        )
    }

    /// The parameters to create one image of it.
    pub fn parameters(&self, disk_type: DiskType, parent: Option<ParentLink>) -> CreateParameters {
        CreateParameters {
            format: self.format,
            disk_type,
            virtual_size: self.virtual_size,
            block_size: self.block_size,
            logical_sector_size: (self.format == Format::Vhdx).then_some(self.sector_size),
            physical_sector_size: None,
            identifier: None,
            parent,
            identifiers: IdentifierSource::seeded(self.virtual_size ^ self.depth as u64),
            created: 1_700_000_000,
        }
    }

    /// Where the interesting places of this disk are.
    pub fn shape(&self) -> Shape {
        let block_size = self.block_size.unwrap_or(match self.format {
            Format::Vhdx => 32 * MIB,
            _ => 2 * MIB,
        });
        Shape {
            virtual_size: self.virtual_size,
            block_size,
            sector_size: u64::from(self.sector_size),
            longest: (3 * block_size / 2).min(3 * MIB),
        }
    }

    /// Makes the disk: ancestors filled with random data, an empty leaf.
    pub fn make(&self, seed: u64) -> TestDisk {
        self.try_make(seed)
            .unwrap_or_else(|e| panic!("cannot make {}: {e}", self.name()))
    }

    fn try_make(&self, seed: u64) -> Result<TestDisk> {
        let base_type = match self.disk_type {
            DiskType::Differencing => DiskType::Dynamic,
            other => other,
        };
        let mut disk = TestDisk {
            variant: self.clone(),
            layers: vec![new_image(&self.parameters(base_type, None))?],
            content: blank(self.virtual_size),
        };
        let mut rng = Rng::new(seed);
        for _ in 1..self.depth {
            disk.fill(&self.shape().random_ops(12, &mut rng))?;
            disk.add_child()?;
        }
        Ok(disk)
    }
}

/// A new, empty image in memory.
///
/// # Errors
/// What the builder says.
pub fn new_image(parameters: &CreateParameters) -> Result<Arc<MemoryStorage>> {
    let storage = Arc::new(MemoryStorage::new());
    new_builder(storage.clone(), parameters)?.finish()?;
    Ok(storage)
}

/// A disk in memory and what it reads.
#[derive(Clone)]
pub struct TestDisk {
    /// What it is.
    pub variant: Variant,
    /// Its files, leaf first.
    pub layers: Vec<Arc<MemoryStorage>>,
    /// What it reads.
    pub content: MemoryStorage,
}

impl TestDisk {
    /// Opens the chain.
    ///
    /// # Errors
    /// What opening says.
    pub fn open(&self, writable: bool) -> Result<VirtualDisk> {
        self.open_leaf(self.layers[0].clone(), writable)
    }

    /// Opens the chain with another file (or a wrapped one) in the leaf's place.
    ///
    /// # Errors
    /// What opening says.
    pub fn open_leaf(&self, leaf: Arc<dyn Storage>, writable: bool) -> Result<VirtualDisk> {
        let format = self.variant.format;
        let mut layers = vec![Layer::new(open_image(leaf, format, writable)?, "leaf")];
        for (i, parent) in self.layers[1..].iter().enumerate() {
            let image = open_image(parent.clone(), format, false)?;
            layers.push(Layer::new(image, format!("parent {}", i + 1)));
        }
        VirtualDisk::from_layers(layers, writable)
    }

    /// Does these operations to the disk and to the model, closing at the end.
    ///
    /// # Errors
    /// What the disk says.
    pub fn fill(&mut self, ops: &[GuestOp]) -> Result<()> {
        let mut disk = self.open(true)?;
        for op in ops {
            op.run(&disk)?;
            op.run_on_model(&self.content);
            match *op {
                GuestOp::Discard { offset, length } => {
                    if let Some(wrong) = follow_discard(&disk, &self.content, offset, length)? {
                        panic!("{}: {wrong}", self.variant.name());
                    }
                }
                GuestOp::Reopen => {
                    disk.close()?;
                    disk = self.open(true)?;
                }
                _ => {}
            }
        }
        disk.close()
    }

    /// Puts an empty differencing image on top.
    ///
    /// # Errors
    /// What the builder says.
    pub fn add_child(&mut self) -> Result<()> {
        let info = self.open(false)?.info();
        let link = ParentLink {
            identifier: info.link_identifier.unwrap_or(Uuid::nil()),
            relative_path: format!(r".\parent-{}", self.layers.len()),
            absolute_path: format!("/disks/parent-{}", self.layers.len()),
            modified: 1_700_000_000,
            disk_identifier: info.identifier,
        };
        let parameters = self.variant.parameters(DiskType::Differencing, Some(link));
        self.layers.insert(0, new_image(&parameters)?);
        Ok(())
    }

    /// A copy whose leaf can be changed without changing this one's.
    #[must_use]
    pub fn fork(&self) -> Self {
        let mut copy = self.clone();
        copy.layers[0] = Arc::new(MemoryStorage::clone(&self.layers[0]));
        copy
    }
}
