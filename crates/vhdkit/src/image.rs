//! Floor 1: what every image format offers, written once as [`Image`].
//!
//! An image is one open file of one format: a sparse block device that may say "ask my parent". Chains, verbs and
//! faces know images only through this trait.
//!
//! Concurrency: every method may be called from any number of threads. Two writes to overlapping ranges at the same
//! time leave, per sector, the bytes of one of them; writes to disjoint byte ranges never disturb each other, also
//! when they share a sector or a block.

use std::io::{PipeReader, PipeWriter};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::storage::{CopyRun, Storage, copy_runs};

/// A file format.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Format {
    /// The bytes of the disk and nothing else.
    Raw,
    /// Virtual hard disk, version 1 (`.vhd`, `.avhd`).
    Vhd,
    /// Virtual hard disk, version 2 (`.vhdx`, `.avhdx`).
    Vhdx,
    /// An optical disc image: read-only, 2048-byte sectors.
    Iso,
}

impl Format {
    /// The name used on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Vhd => "vhd",
            Format::Vhdx => "vhdx",
            Format::Iso => "iso",
        }
    }
}

/// How an image takes its space.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[expect(clippy::exhaustive_enums, reason = "the formats know these three")]
pub enum DiskType {
    /// All space is reserved from the start.
    Fixed,
    /// Blocks are allocated when they are first written.
    Dynamic,
    /// As dynamic; what it does not hold is in its parent.
    Differencing,
}

impl DiskType {
    /// The name used on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            DiskType::Fixed => "fixed",
            DiskType::Dynamic => "dynamic",
            DiskType::Differencing => "differencing",
        }
    }
}

/// What an image says about itself. Sizes are in bytes.
#[derive(Clone, Debug)]
#[expect(
    clippy::exhaustive_structs,
    reason = "built by the formats and, in tests, by hand"
)]
pub struct ImageInfo {
    /// The file format.
    pub format: Format,
    /// How it takes space.
    pub disk_type: DiskType,
    /// Size of the disk that the guest sees.
    pub virtual_size: u64,
    /// Smallest unit that a guest addresses: 512, 2048 (ISO) or 4096.
    pub logical_sector_size: u32,
    /// Smallest unit that the medium writes without reading first.
    pub physical_sector_size: u32,
    /// Unit of allocation; `None` for formats without blocks.
    pub block_size: Option<u64>,
    /// The disk's own identifier (VHD: UniqueId of the footer; VHDX: virtual disk ID).
    pub identifier: Option<Uuid>,
    /// What a child must have recorded of this image to be its child (VHD: UniqueId; VHDX: DataWriteGuid).
    pub link_identifier: Option<Uuid>,
    /// The program that made the file, as it calls itself.
    pub creator: Option<String>,
    /// When it was made, in seconds since 1970.
    pub created: Option<i64>,
    /// Cylinders, heads, sectors per track as stored (VHD).
    pub geometry: Option<(u16, u8, u8)>,
    /// Length of the file.
    pub file_size: u64,
    /// True if the file's log held changes that were not yet in place (they are taken into account).
    pub log_replayed: bool,
    /// What the image says of its parent (differencing only).
    pub parent: Option<ParentReference>,
}

/// What a differencing image says of its parent.
#[derive(Clone, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "built by the formats")]
pub struct ParentReference {
    /// Accepted values of the parent's [`ImageInfo::link_identifier`].
    pub identifiers: Vec<Uuid>,
    /// Where the parent may be, in the order to try.
    pub paths: Vec<ParentPath>,
    /// Last change of the parent's file when the child was made, in seconds since 1970 (VHD).
    pub modified: Option<i64>,
}

/// One stored path of a parent, as text.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_structs, reason = "built by the formats")]
pub struct ParentPath {
    /// How to read it.
    pub kind: ParentPathKind,
    /// The text; unpaired surrogates are replaced.
    pub path: String,
}

/// How a stored parent path is to be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_enums, reason = "the formats know these")]
pub enum ParentPathKind {
    /// Relative to the child's folder, Windows separators.
    Relative,
    /// An absolute Windows path, with or without `\\?\`.
    Absolute,
    /// `\\?\Volume{...}\...`.
    Volume,
    /// A file URL (RFC 2396).
    Url,
    /// A bare file name.
    Name,
}

impl ParentPathKind {
    /// The name used in JSON.
    pub fn name(self) -> &'static str {
        match self {
            ParentPathKind::Relative => "relative",
            ParentPathKind::Absolute => "absolute",
            ParentPathKind::Volume => "volume",
            ParentPathKind::Url => "url",
            ParentPathKind::Name => "name",
        }
    }
}

/// A run of the virtual disk that has one answer. Lengths and offsets are in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_structs, reason = "a plain answer")]
pub struct Extent {
    /// How long the run is.
    pub length: u64,
    /// What it is.
    pub kind: ExtentKind,
}

/// What a run of the virtual disk is in one image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_enums, reason = "there is no fourth answer")]
pub enum ExtentKind {
    /// Bytes in the image's storage, one after the other.
    Data {
        /// Where in [`Image::storage`] the run starts.
        storage_offset: u64,
    },
    /// Reads as zeros; no storage.
    Zero,
    /// The parent decides; without a parent it reads as zeros.
    Absent,
}

/// What zeroing does with the space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_enums, reason = "there is no third way")]
pub enum ZeroMode {
    /// Space may be given back.
    MayUnmap,
    /// Space stays (or becomes) allocated, so that later writes cannot run out of it.
    KeepAllocated,
}

/// The images behind a differencing image, as far as it needs them: for the untouched part of a sector that is
/// written in part, and to know whether zeros need to be written down.
pub trait Backing {
    /// Fills `buf` from `offset` with what the parent shows; zeros past its end.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;
    /// True if the maps say, without reading data, that the whole range reads as zeros.
    fn is_zero(&self, offset: u64, length: u64) -> Result<bool>;
}

/// No parent: everything is zero.
pub struct NoBacking;

impl Backing for NoBacking {
    fn read_at(&self, _offset: u64, buf: &mut [u8]) -> Result<()> {
        buf.fill(0);
        Ok(())
    }
    fn is_zero(&self, _offset: u64, _length: u64) -> Result<bool> {
        Ok(true)
    }
}

/// One open file of one format. Ranges have been checked against [`Image::virtual_size`] by the caller.
pub trait Image: Send + Sync {
    /// What the image says about itself.
    fn info(&self) -> ImageInfo;

    /// Size of the virtual disk in bytes.
    fn virtual_size(&self) -> u64;

    /// Where the bytes of [`ExtentKind::Data`] extents are.
    fn storage(&self) -> &Arc<dyn Storage>;

    /// The longest run starting at `offset`, at most `length` bytes, that has one answer. `length` is not zero.
    ///
    /// Runs of several blocks are joined where their storage is contiguous. The answer is a snapshot: a later write,
    /// zero or discard of the same range may change it.
    fn map(&self, offset: u64, length: u64) -> Result<Extent>;

    /// Fills the parts of `buf` that this image decides; reports the ranges (offsets of the virtual disk, ascending)
    /// that the parent decides by pushing them to `absent`, leaving those parts of `buf` untouched.
    fn read_at(&self, offset: u64, buf: &mut [u8], absent: &mut Vec<Range<u64>>) -> Result<()>;

    /// Writes bytes of any alignment.
    fn write_at(&self, offset: u64, data: &[u8], backing: &dyn Backing) -> Result<()>;

    /// Puts the first bytes of a range into a pipe without copying them, as [`Storage::lend`] does; 0 if they are not in
    /// this image or cannot be lent, then [`Image::read_at`] is.
    ///
    /// What comes out of the pipe, whenever that is, is what the range held when this was called or what was written to
    /// it since, never bytes of other ranges or of the file's structures: a format lends only where no place of the file
    /// is used for something else before its pages have been emptied.
    fn lend(&self, offset: u64, length: u64, pipe: &PipeWriter) -> Result<u64> {
        let _ = (offset, length, pipe);
        Ok(0)
    }

    /// Writes the first bytes of a range out of a pipe that has `length` of them, as [`Storage::write_pipe`] does. Returns
    /// how many: 0 if what they stand for has no place in the file yet; then [`Image::write_at`] is.
    fn write_pipe(&self, offset: u64, length: u64, pipe: &PipeReader) -> Result<u64> {
        let _ = (offset, length, pipe);
        Ok(0)
    }

    /// Makes a range of any alignment read as zeros; never lets the parent's data reappear.
    fn zero(&self, offset: u64, length: u64, mode: ZeroMode, backing: &dyn Backing) -> Result<()>;

    /// The guest no longer needs the range: afterwards each sector of it reads as zeros or as before, never as the
    /// parent's data. Space may be given back.
    fn discard(&self, offset: u64, length: u64, backing: &dyn Backing) -> Result<()>;

    /// Everything written before is durable when this returns.
    fn flush(&self) -> Result<()>;

    /// Flushes and leaves the file clean (an empty log, no spare space at the end). Later writes fail. Closing twice
    /// does nothing.
    fn close(&self) -> Result<()>;

    /// Copies bytes of another file to where they belong on the disk, or shares them where the file system can. Runs come
    /// in the order of the disk, each within one block. Returns those that it did not take, because a differencing image
    /// has their block only in part; for them there is [`Image::write_at`]. `copied` is told of further bytes.
    ///
    /// A crash may leave any sector of a run old, new or zero, so this is for ranges of which nobody reads this image's
    /// content until the next flush.
    fn copy_from(
        &self,
        source: &dyn Storage,
        runs: Vec<SourceRun>,
        copied: Told<'_>,
    ) -> Result<Vec<SourceRun>> {
        let _ = (source, copied);
        Ok(runs)
    }

    /// This many blocks, at most, are about to get space, so that the file can grow for all of them at once; 0 if it
    /// is not known.
    fn expect_blocks(&self, count: u64) {
        let _ = count;
    }

    /// True if [`ImageInfo::link_identifier`] changes with the content, so that a child has to be told of a change of
    /// its parent beforehand.
    fn link_follows_content(&self) -> bool {
        false
    }

    // What follows changes the structure of the file or its identity, or looks at it. The changes need the image to
    // themselves, hence `&mut`. Each is durable when it returns, and a crash inside leaves the state before or after.
    // The defaults are those of a format that cannot do it.

    /// Reads what the first change has to know, which then does not wait for it. `pace` is told how much of the tables
    /// was read, in bytes, and may stop it. Not needed, and changes nothing that a reader sees.
    fn prepare(&self, pace: Pace<'_>) -> Result<()> {
        let _ = pace;
        Ok(())
    }

    /// How the file's space is used. Reads tables, never payload.
    fn usage(&self) -> Result<Usage> {
        self.usage_telling(&mut |_, _| Ok(()))
    }

    /// As [`Image::usage`]; `pace` is told how much of the tables was read, in bytes, and may stop it.
    fn usage_telling(&self, pace: Pace<'_>) -> Result<Usage> {
        let _ = pace;
        let file_size = self.storage().len()?;
        Ok(Usage {
            file_size,
            payload: file_size,
            packed_size: file_size,
            ..Usage::default()
        })
    }

    /// The most that the file's length can become by making the disk `size` bytes long (if it is shorter) and then
    /// giving space to `blocks` more blocks.
    fn length_with(&self, size: u64, blocks: u64) -> Result<u64> {
        let _ = blocks;
        Ok(self.storage().len()?.max(size))
    }

    /// The first blocks at or behind `offset` (of the virtual disk) that take space in the file, in their order, at most
    /// `most`: the parts of the virtual disk that they stand for. A block that holds on to space without content counts.
    /// Fewer than `most` are all there are: none of fixed disks and formats without blocks, whose space is not given
    /// back.
    fn allocated_blocks(&self, offset: u64, most: usize) -> Result<Vec<AllocatedBlock>> {
        let _ = (offset, most);
        Ok(Vec::new())
    }

    /// The first of [`Image::allocated_blocks`].
    fn next_allocated(&self, offset: u64) -> Result<Option<AllocatedBlock>> {
        Ok(self.allocated_blocks(offset, 1)?.pop())
    }

    /// Gives back the space of a block found by [`Image::allocated_blocks`], of which the caller knows that the disk
    /// reads as zeros there (or that it has no content). What the disk reads does not change, and so neither does the
    /// identity that children have recorded. False if that is not possible (a VHD child cannot hide its parent's data
    /// without a block). Durable with the next flush. Part of packing, as [`Image::pack`].
    fn release(&mut self, block: &AllocatedBlock, backing: &dyn Backing) -> Result<bool> {
        let _ = (block, backing);
        Ok(false)
    }

    /// Moves blocks from the end of the file into free space before them, at most `budget` bytes (but at least one
    /// block) in one call. Durable with the next flush. When nothing is left to be moved, it was, and the file has been
    /// cut off behind the last byte in use, durably. Identifiers that children have recorded do not change.
    ///
    /// What became free may be kept for further calls; [`Image::end_packing`] says that there will be none.
    fn pack(&mut self, budget: u64) -> Result<Packed> {
        self.pack_telling(budget, &|_| Ok(()))
    }

    /// As [`Image::pack`]; `told` hears of what is done, as it is done.
    fn pack_telling(&mut self, budget: u64, told: PackingTold<'_>) -> Result<Packed> {
        let _ = (budget, told);
        Ok(Packed::default())
    }

    /// As [`Image::prepare`], for calls of [`Image::release`] and [`Image::pack`].
    fn prepare_packing(&mut self, pace: Pace<'_>) -> Result<()> {
        self.prepare(pace)
    }

    /// No call of [`Image::release`] or [`Image::pack`] follows for now, be it because all is done or not.
    fn end_packing(&mut self) {}

    /// Makes the virtual disk larger or smaller. What is added reads as zeros: not as data that was cut off before,
    /// not as data of a parent. Identifiers that children have recorded change as the format demands. `pace` is told
    /// how far the work is; if it fails, the disk keeps its old size and the error is returned.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidType`] where the format or type cannot do it, [`ErrorKind::InvalidSize`] outside its
    /// limits.
    fn resize(&mut self, size: u64, backing: &dyn Backing, pace: Pace<'_>) -> Result<()> {
        let _ = (size, backing, pace);
        Err(unable(self.info().format, "be resized"))
    }

    /// Replaces everything that a differencing image says of its parent.
    fn set_parent(&mut self, link: &ParentLink) -> Result<()> {
        let _ = link;
        Err(unable(self.info().format, "have a parent"))
    }

    /// Changes which values of the parent's [`ImageInfo::link_identifier`] are accepted, and nothing else of what the
    /// image says of its parent: one value, or (VHDX) two while the parent is about to change.
    fn set_parent_identifiers(&mut self, identifiers: &[Uuid]) -> Result<()> {
        let _ = identifiers;
        Err(unable(self.info().format, "have a parent"))
    }

    /// Gives the image a chosen [`ImageInfo::link_identifier`], as a sign that its content changes from now on; writes
    /// of this session keep it. A format whose link identifier does not follow its content does nothing.
    fn set_link_identifier(&mut self, identifier: Uuid) -> Result<()> {
        let _ = identifier;
        Ok(())
    }

    /// Changes [`ImageInfo::identifier`]. For a VHD this is what its children have recorded: they lose their parent.
    fn set_identifier(&mut self, identifier: Uuid) -> Result<()> {
        let _ = identifier;
        Err(unable(self.info().format, "have an identifier"))
    }

    /// Changes [`ImageInfo::physical_sector_size`].
    fn set_physical_sector_size(&mut self, size: u32) -> Result<()> {
        let _ = size;
        Err(unable(
            self.info().format,
            "change its physical sector size",
        ))
    }

    /// Identifiers and lengths in bytes of the user's metadata items, in the order of the file.
    fn user_metadata(&self) -> Result<Vec<(Uuid, u32)>> {
        Err(unable(self.info().format, "hold metadata"))
    }

    /// One of the user's metadata items.
    ///
    /// # Errors
    /// [`ErrorKind::ItemNotFound`].
    fn read_user_metadata(&self, item: Uuid) -> Result<Vec<u8>> {
        let _ = item;
        Err(unable(self.info().format, "hold metadata"))
    }

    /// Writes, replaces or (`None`) deletes one of the user's metadata items.
    ///
    /// # Errors
    /// [`ErrorKind::MetadataFull`] beyond the format's limits; [`ErrorKind::ItemNotFound`] if there is none to delete.
    fn write_user_metadata(&mut self, item: Uuid, value: Option<&[u8]>) -> Result<()> {
        let _ = (item, value);
        Err(unable(self.info().format, "hold metadata"))
    }
}

fn unable(format: Format, what: &str) -> Error {
    Error::new(
        ErrorKind::InvalidType,
        format!("a {} disk cannot {what}", format.name()),
    )
    .with_hint("convert it to VHDX first")
}

/// Bytes of a file that belong on a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_structs, reason = "a plain request")]
pub struct SourceRun {
    /// Where they belong on the virtual disk.
    pub offset: u64,
    /// Where they are in the file.
    pub storage_offset: u64,
    /// How many there are.
    pub length: u64,
}

/// Copies the runs for which `place` finds a place in the target, and returns the others.
pub(crate) fn copy_placed(
    target: &dyn Storage,
    source: &dyn Storage,
    runs: Vec<SourceRun>,
    copied: Told<'_>,
    mut place: impl FnMut(&SourceRun) -> Result<Option<u64>>,
) -> Result<Vec<SourceRun>> {
    let (mut placed, mut rest) = (Vec::new(), Vec::new());
    for run in runs {
        match place(&run)? {
            Some(to) => placed.push(CopyRun {
                from: run.storage_offset,
                to,
                length: run.length,
            }),
            None => rest.push(run),
        }
    }
    copy_runs(target, source, placed, copied)?;
    Ok(rest)
}

/// Told of further bytes done, from any thread.
pub type Told<'a> = &'a (dyn Fn(u64) + Sync);

/// A part of packing that is done, in bytes. An error asks to stop, and is handed on where that is possible.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_enums, reason = "all that packing does")]
pub enum PackingStep {
    /// Read of tables.
    Read(u64),
    /// Moved.
    Moved(u64),
    /// Cut off the file's end.
    CutOff(u64),
}

/// Told of packing, from any thread.
pub type PackingTold<'a> = &'a (dyn Fn(PackingStep) -> Result<()> + Sync);

/// Told of units done and units in all; an error asks to stop and is handed on.
pub type Pace<'a> = &'a mut dyn FnMut(u64, u64) -> Result<()>;

/// How the space of a file is used, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "a plain answer")]
pub struct Usage {
    /// Length of the file.
    pub file_size: u64,
    /// Blocks of the virtual disk.
    pub payload: u64,
    /// Headers, tables, logs, bitmaps, metadata.
    pub structures: u64,
    /// Inside the file and not in use.
    pub free: u64,
    /// Length of the file after packing without releasing anything.
    pub packed_size: u64,
    /// How many blocks have space.
    pub allocated_blocks: u64,
    /// How many of them do not lie directly behind the allocated block before them.
    pub displaced_blocks: u64,
}

/// A block that takes space in the file.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_structs, reason = "a plain answer")]
pub struct AllocatedBlock {
    /// What it stands for, cut off at the end of the disk.
    pub range: Range<u64>,
    /// Bytes of the file that would become free.
    pub space: u64,
    /// Of these: what belongs to the block and is not its content, such as its bitmap.
    pub structures: u64,
    /// False if it holds on to space without content: it reads as zeros.
    pub has_content: bool,
}

/// What a step of packing did, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "a plain answer")]
pub struct Packed {
    /// Moved by this call.
    pub moved: u64,
    /// Still to be moved; with 0 the work is over.
    pub left: u64,
}

/// An image being made: payload first, in any order; metadata at the end; the signature last.
///
/// Until [`ImageBuilder::finish`] the file is not an image. What was not placed reads as zeros (or as the parent).
pub trait ImageBuilder: Send + Sync {
    /// Where payload goes; bytes never written read as zeros.
    fn storage(&self) -> &Arc<dyn Storage>;

    /// Runs handed to [`ImageBuilder::place`] must not cross a multiple of this many bytes of the virtual disk.
    fn placement_unit(&self) -> u64;

    /// Tells before the first [`ImageBuilder::place`] how many blocks of [`ImageBuilder::placement_unit`] bytes will
    /// have payload, at most: the file's space can then be reserved in large pieces.
    fn expect_blocks(&self, count: u64) {
        let _ = count;
    }

    /// Where in the storage the run of the virtual disk starting at `offset` goes: allocates its block on the first
    /// call, and marks the run as present. Offset and length are whole sectors.
    fn place(&self, offset: u64, length: u64) -> Result<u64>;

    /// Writes all metadata and makes the file an image, durably.
    fn finish(&self) -> Result<()>;
}

/// What to create. Sizes are in bytes; `None` takes the format's default.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "a plain request")]
pub struct CreateParameters {
    /// The file format.
    pub format: Format,
    /// How it takes space.
    pub disk_type: DiskType,
    /// Size of the virtual disk.
    pub virtual_size: u64,
    /// Unit of allocation.
    pub block_size: Option<u64>,
    /// 512 or 4096.
    pub logical_sector_size: Option<u32>,
    /// 512 or 4096.
    pub physical_sector_size: Option<u32>,
    /// The disk's identifier.
    pub identifier: Option<Uuid>,
    /// The parent of a differencing disk.
    pub parent: Option<ParentLink>,
    /// Where identifiers come from.
    pub identifiers: IdentifierSource,
    /// Seconds since 1970 to store as time of creation.
    pub created: i64,
}

impl CreateParameters {
    /// A disk that takes all else from its format, is made now, and gets random identifiers.
    pub fn new(format: Format, disk_type: DiskType, virtual_size: u64) -> Self {
        Self {
            format,
            disk_type,
            virtual_size,
            block_size: None,
            logical_sector_size: None,
            physical_sector_size: None,
            identifier: None,
            parent: None,
            identifiers: IdentifierSource::random(),
            created: now(),
        }
    }
}

/// Seconds since 1970 by the system's clock; 0 if it is set to a time before.
pub fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| i64::try_from(time.as_secs()).unwrap_or(0))
}

/// What a new differencing image records of its parent.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "a plain request")]
pub struct ParentLink {
    /// The parent's [`ImageInfo::link_identifier`].
    pub identifier: Uuid,
    /// Path relative to the child's folder with Windows separators, `.\parent.vhdx`.
    pub relative_path: String,
    /// Absolute path as text. Stored if it is a Windows path, or one of this system in the notation of Windows.
    pub absolute_path: String,
    /// Last change of the parent's file, in seconds since 1970.
    pub modified: i64,
    /// The parent's identifier of the disk, which a VHDX child inherits.
    pub disk_identifier: Option<Uuid>,
}

/// Where identifiers come from: random, or drawn from a seed so that the same request makes the same bytes.
#[derive(Clone, Debug, Default)]
pub struct IdentifierSource(Option<Arc<Mutex<u64>>>);

impl IdentifierSource {
    /// Random identifiers.
    pub fn random() -> Self {
        Self(None)
    }

    /// A fixed series of identifiers.
    pub fn seeded(seed: u64) -> Self {
        Self(Some(Arc::new(Mutex::new(seed))))
    }

    /// True if the series is fixed.
    pub fn is_seeded(&self) -> bool {
        self.0.is_some()
    }

    /// The next identifier, of RFC 4122 version 4 in form.
    pub fn next(&self) -> Uuid {
        let Some(state) = &self.0 else {
            return Uuid::new_v4();
        };
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = [0; 16];
        for half in bytes.chunks_exact_mut(8) {
            half.copy_from_slice(&split_mix(&mut state).to_le_bytes());
        }
        uuid::Builder::from_random_bytes(bytes).into_uuid()
    }
}

/// SplitMix64: a small generator whose whole state is its seed.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// How bad a finding of a check is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[expect(clippy::exhaustive_enums, reason = "part of the stable JSON")]
pub enum Severity {
    /// Legal, worth knowing.
    Info,
    /// Wrong, but nothing is lost and a writable open or a repair puts it right.
    Warning,
    /// Data is lost, ambiguous or unreachable.
    Error,
    /// The file cannot be opened.
    Fatal,
}

impl Severity {
    /// The name used in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
            Severity::Fatal => "fatal",
        }
    }
}

/// One result of a check.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(clippy::exhaustive_structs, reason = "part of the stable JSON")]
pub struct Finding {
    /// A stable code such as `vhdx-header-invalid`.
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// Where in the file, in bytes.
    pub offset: Option<u64>,
    /// What was found, with values.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_identifiers_and_random_ones_differ() {
        let (a, b) = (IdentifierSource::seeded(7), IdentifierSource::seeded(7));
        let first = a.next();
        assert_eq!(first, b.next());
        assert_ne!(first, a.next());
        assert_ne!(
            IdentifierSource::random().next(),
            IdentifierSource::random().next()
        );
    }
}
