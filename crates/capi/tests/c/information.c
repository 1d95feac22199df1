/* GetVirtualDiskInformation and SetVirtualDiskInformation (contract, 2.8 and 2.9), chains made by hand (2.17),
 * dependencies (2.7). */
#include "check.h"

static DWORD set(HANDLE handle, SET_VIRTUAL_DISK_INFO *i) { return SetVirtualDiskInformation(handle, i); }

static SET_VIRTUAL_DISK_INFO change(SET_VIRTUAL_DISK_INFO_VERSION kind) {
    SET_VIRTUAL_DISK_INFO i;
    memset(&i, 0, sizeof i);
    i.Version = kind;
    return i;
}

static void kinds(void) {
    HANDLE vhdx = create("a.vhdx", 64 * MB), vhd = create("a.vhd", 64 * MB), fixed;
    CREATE_VIRTUAL_DISK_PARAMETERS p = creation(8 * MB);
    GET_VIRTUAL_DISK_INFO i = info(vhdx, GET_VIRTUAL_DISK_INFO_SIZE);
    CHECK(i.Size.VirtualSize == 64 * MB && i.Size.BlockSize == 32 * MB && i.Size.SectorSize == 512);
    CHECK(i.Size.PhysicalSize >= 1 * MB);
    CHECK(info(vhd, GET_VIRTUAL_DISK_INFO_SIZE).Size.BlockSize == 2 * MB);
    i = info(vhd, GET_VIRTUAL_DISK_INFO_VIRTUAL_STORAGE_TYPE);
    CHECK(i.VirtualStorageType.DeviceId == VIRTUAL_STORAGE_TYPE_DEVICE_VHD);
    CHECK(same_guid(i.VirtualStorageType.VendorId, VIRTUAL_STORAGE_TYPE_VENDOR_MICROSOFT));
    CHECK(info(vhdx, GET_VIRTUAL_DISK_INFO_PROVIDER_SUBTYPE).ProviderSubtype == 3);
    CHECK(info(vhdx, GET_VIRTUAL_DISK_INFO_VHD_PHYSICAL_SECTOR_SIZE).VhdPhysicalSectorSize == 4096);
    CHECK(info(vhd, GET_VIRTUAL_DISK_INFO_VHD_PHYSICAL_SECTOR_SIZE).VhdPhysicalSectorSize == 512);
    CHECK(info(vhdx, GET_VIRTUAL_DISK_INFO_IS_4K_ALIGNED).Is4kAligned);
    i = info(vhdx, GET_VIRTUAL_DISK_INFO_PHYSICAL_DISK);
    CHECK(i.PhysicalDisk.LogicalSectorSize >= 512 && i.PhysicalDisk.PhysicalSectorSize >= 512 && !i.PhysicalDisk.IsRemote);
    CHECK(info(vhdx, GET_VIRTUAL_DISK_INFO_FRAGMENTATION).FragmentationPercentage == 0);
    CHECK(!info(vhdx, GET_VIRTUAL_DISK_INFO_IS_LOADED).IsLoaded);
    EXPECT(ERROR_VHD_COULD_NOT_COMPUTE_MINIMUM_VIRTUAL_SIZE, try_info(vhdx, GET_VIRTUAL_DISK_INFO_SMALLEST_SAFE_VIRTUAL_SIZE));
    EXPECT(ERROR_VHD_INVALID_TYPE, try_info(vhdx, GET_VIRTUAL_DISK_INFO_PARENT_LOCATION));
    EXPECT(ERROR_VHD_INVALID_TYPE, try_info(vhdx, GET_VIRTUAL_DISK_INFO_PARENT_IDENTIFIER));
    EXPECT(ERROR_VHD_INVALID_TYPE, try_info(vhdx, GET_VIRTUAL_DISK_INFO_PARENT_TIMESTAMP));
    memset(&i, 0xCC, sizeof i);
    i = info(vhdx, GET_VIRTUAL_DISK_INFO_CHANGE_TRACKING_STATE);
    CHECK(!i.ChangeTrackingState.Enabled && !i.ChangeTrackingState.NewerChanges && i.ChangeTrackingState.MostRecentId[0] == 0);
    EXPECT(ERROR_INVALID_PARAMETER, try_info(vhdx, GET_VIRTUAL_DISK_INFO_UNSPECIFIED));
    EXPECT(ERROR_INVALID_PARAMETER, try_info(vhdx, (GET_VIRTUAL_DISK_INFO_VERSION)16));
    /* Of a VHD both identifiers are the footer's; of a VHDX they differ. */
    CHECK(same_guid(info(vhd, GET_VIRTUAL_DISK_INFO_IDENTIFIER).Identifier,
                    info(vhd, GET_VIRTUAL_DISK_INFO_VIRTUAL_DISK_ID).VirtualDiskId));
    CHECK(!same_guid(info(vhdx, GET_VIRTUAL_DISK_INFO_IDENTIFIER).Identifier,
                     info(vhdx, GET_VIRTUAL_DISK_INFO_VIRTUAL_DISK_ID).VirtualDiskId));
    fixed = create_with("f.vhd", CREATE_VIRTUAL_DISK_FLAG_FULL_PHYSICAL_ALLOCATION, &p);
    CHECK(info(fixed, GET_VIRTUAL_DISK_INFO_PROVIDER_SUBTYPE).ProviderSubtype == 2);
    CHECK(info(fixed, GET_VIRTUAL_DISK_INFO_SIZE).Size.BlockSize == 0);
    close_handle(fixed);
    close_handle(vhdx);
    close_handle(vhd);
}

/* The buffer is told to be too small, and only the arm is written. */
static void buffers(void) {
    HANDLE child = create_child("child.vhdx", "a.vhdx");
    GET_VIRTUAL_DISK_INFO *i;
    unsigned char bytes[40];
    ULONG size = 4, used = 0;
    size_t n = 0;
    memset(bytes, 0xCC, sizeof bytes);
    i = (GET_VIRTUAL_DISK_INFO *)bytes;
    EXPECT(ERROR_INSUFFICIENT_BUFFER, GetVirtualDiskInformation(child, &size, i, &used));
    CHECK(size == sizeof *i && bytes[8] == 0xCC);
    i->Version = GET_VIRTUAL_DISK_INFO_PROVIDER_SUBTYPE;
    EXPECT(ERROR_SUCCESS, GetVirtualDiskInformation(child, &size, i, &used));
    CHECK(used == 12 && i->ProviderSubtype == 4 && bytes[12] == 0xCC && bytes[4] == 0xCC);
    i->Version = GET_VIRTUAL_DISK_INFO_PARENT_LOCATION;
    EXPECT(ERROR_INSUFFICIENT_BUFFER, GetVirtualDiskInformation(child, &size, i, &used));
    CHECK(size > sizeof *i);
    i = (GET_VIRTUAL_DISK_INFO *)malloc(size);
    i->Version = GET_VIRTUAL_DISK_INFO_PARENT_LOCATION;
    EXPECT(ERROR_SUCCESS, GetVirtualDiskInformation(child, &size, i, &used));
    CHECK(used == size && i->ParentLocation.ParentResolved);
    {
        PCWSTR found = i->ParentLocation.ParentLocationBuffer, wanted = at("a.vhdx");
        while (wanted[n] && found[n] == wanted[n])
            n++;
        CHECK(wanted[n] == 0 && found[n] == 0);
    }
    free(i);
    close_handle(child);
}

/* The sample's way to another parent: compare, then change, with the disks opened alone. */
static void parents(void) {
    HANDLE child, parent;
    SET_VIRTUAL_DISK_INFO i;
    EXPECT(ERROR_SUCCESS, try_open("child.vhdx", OPEN_VIRTUAL_DISK_FLAG_NO_PARENTS, TRUE, FALSE, &child));
    EXPECT(ERROR_SUCCESS, try_open("a.vhdx", OPEN_VIRTUAL_DISK_FLAG_NO_PARENTS, TRUE, FALSE, &parent));
    CHECK(same_guid(info(child, GET_VIRTUAL_DISK_INFO_PARENT_IDENTIFIER).ParentIdentifier,
                    info(parent, GET_VIRTUAL_DISK_INFO_IDENTIFIER).Identifier));
    CHECK(info(child, GET_VIRTUAL_DISK_INFO_PARENT_TIMESTAMP).ParentTimestamp == 0);
    i = change(SET_VIRTUAL_DISK_INFO_PHYSICAL_SECTOR_SIZE);
    i.VhdPhysicalSectorSize = 512;
    EXPECT(ERROR_ACCESS_DENIED, set(child, &i));
    close_handle(child);
    close_handle(parent);

    EXPECT(ERROR_SUCCESS, try_open("child.vhdx", OPEN_VIRTUAL_DISK_FLAG_NO_PARENTS, FALSE, FALSE, &child));
    EXPECT(ERROR_VHD_PARENT_VHD_NOT_FOUND, AttachVirtualDisk(child, NULL, raw(0), 0, NULL, NULL));
    i = change(SET_VIRTUAL_DISK_INFO_PARENT_PATH_WITH_DEPTH);
    i.ParentPathWithDepthInfo.ChildDepth = 1;
    i.ParentPathWithDepthInfo.ParentFilePath = at("a.vhdx");
    EXPECT(ERROR_SUCCESS, set(child, &i));
    i.ParentPathWithDepthInfo.ChildDepth = 2;
    EXPECT(ERROR_INVALID_PARAMETER, set(child, &i));
    i = change(SET_VIRTUAL_DISK_INFO_PARENT_PATH);
    i.ParentFilePath = at("missing.vhdx");
    EXPECT(ERROR_VHD_PARENT_VHD_NOT_FOUND, set(child, &i));
    i.ParentFilePath = at("child.vhdx");
    EXPECT(ERROR_VHD_DIFFERENCING_CHAIN_CYCLE_DETECTED, set(child, &i));
    close_handle(create("other.vhdx", 64 * MB));
    i.ParentFilePath = at("other.vhdx");
    EXPECT(ERROR_VHD_CHILD_PARENT_ID_MISMATCH, set(child, &i));
    /* ... unless the linkage is given. */
    parent = open_read_only("other.vhdx");
    i = change(SET_VIRTUAL_DISK_INFO_PARENT_LOCATOR);
    i.ParentLocator.LinkageId = info(parent, GET_VIRTUAL_DISK_INFO_IDENTIFIER).Identifier;
    i.ParentLocator.ParentFilePath = at("other.vhdx");
    close_handle(parent);
    EXPECT(ERROR_SUCCESS, set(child, &i));
    close_handle(child);
    close_handle(open_v2("child.vhdx"));
}

static void identities(void) {
    HANDLE vhdx = open_v2("a.vhdx"), vhd = open_v2("a.vhd");
    SET_VIRTUAL_DISK_INFO i = change(SET_VIRTUAL_DISK_INFO_IDENTIFIER);
    EXPECT(ERROR_INVALID_PARAMETER, set(vhd, &i));
    i.UniqueIdentifier = guid_of(5);
    EXPECT(ERROR_SUCCESS, set(vhd, &i));
    CHECK(same_guid(info(vhd, GET_VIRTUAL_DISK_INFO_IDENTIFIER).Identifier, guid_of(5)));
    EXPECT(ERROR_VHD_INVALID_TYPE, set(vhdx, &i));
    i = change(SET_VIRTUAL_DISK_INFO_VIRTUAL_DISK_ID);
    EXPECT(ERROR_INVALID_PARAMETER, set(vhdx, &i));
    i.VirtualDiskId = guid_of(6);
    EXPECT(ERROR_SUCCESS, set(vhdx, &i));
    EXPECT(ERROR_SUCCESS, set(vhdx, &i));
    CHECK(same_guid(info(vhdx, GET_VIRTUAL_DISK_INFO_VIRTUAL_DISK_ID).VirtualDiskId, guid_of(6)));
    EXPECT(ERROR_VHD_INVALID_TYPE, set(vhd, &i));
    i = change(SET_VIRTUAL_DISK_INFO_PHYSICAL_SECTOR_SIZE);
    i.VhdPhysicalSectorSize = 1024;
    EXPECT(ERROR_INVALID_PARAMETER, set(vhdx, &i));
    i.VhdPhysicalSectorSize = 512;
    EXPECT(ERROR_SUCCESS, set(vhdx, &i));
    CHECK(info(vhdx, GET_VIRTUAL_DISK_INFO_VHD_PHYSICAL_SECTOR_SIZE).VhdPhysicalSectorSize == 512);
    attach(vhdx);
    EXPECT(ERROR_VHD_INVALID_STATE, set(vhdx, &i));
    i = change(SET_VIRTUAL_DISK_INFO_CHANGE_TRACKING_STATE);
    i.ChangeTrackingEnabled = TRUE;
    detach(vhdx);
    EXPECT(ERROR_NOT_SUPPORTED, set(vhdx, &i));
    close_handle(vhdx);
    close_handle(vhd);
}

static void chain_by_hand_and_dependencies(void) {
    HANDLE leaf;
    STORAGE_DEPENDENCY_INFO *deps;
    ULONG used = 0;
    GET_STORAGE_DEPENDENCY_FLAG hosts =
        (GET_STORAGE_DEPENDENCY_FLAG)(GET_STORAGE_DEPENDENCY_FLAG_HOST_VOLUMES | GET_STORAGE_DEPENDENCY_FLAG_DISK_HANDLE);
    close_handle(create("base.vhdx", 64 * MB));
    put_in("base.vhdx", 0, 1);
    close_handle(create_child("mid.vhdx", "base.vhdx"));
    put_in("mid.vhdx", 1 * MB, 2);
    close_handle(create_child("leaf.vhdx", "mid.vhdx"));

    EXPECT(ERROR_SUCCESS, try_open("leaf.vhdx", OPEN_VIRTUAL_DISK_FLAG_NONE, FALSE, TRUE, &leaf));
    EXPECT(ERROR_VHD_INVALID_STATE, AddVirtualDiskParent(leaf, at("mid.vhdx")));
    close_handle(leaf);
    EXPECT(ERROR_SUCCESS, try_open("leaf.vhdx", OPEN_VIRTUAL_DISK_FLAG_CUSTOM_DIFF_CHAIN, FALSE, FALSE, &leaf));
    EXPECT(ERROR_ACCESS_DENIED, AddVirtualDiskParent(leaf, at("mid.vhdx")));
    close_handle(leaf);
    EXPECT(ERROR_SUCCESS, try_open("leaf.vhdx", OPEN_VIRTUAL_DISK_FLAG_CUSTOM_DIFF_CHAIN, FALSE, TRUE, &leaf));
    EXPECT(ERROR_VHD_PARENT_VHD_NOT_FOUND, AttachVirtualDisk(leaf, NULL, raw(1), 0, NULL, NULL));
    EXPECT(ERROR_VHD_CHILD_PARENT_ID_MISMATCH, AddVirtualDiskParent(leaf, at("base.vhdx")));
    EXPECT(ERROR_VHD_PARENT_VHD_NOT_FOUND, AddVirtualDiskParent(leaf, at("none.vhdx")));
    EXPECT(ERROR_VHD_DIFFERENCING_CHAIN_CYCLE_DETECTED, AddVirtualDiskParent(leaf, at("leaf.vhdx")));
    EXPECT(ERROR_SUCCESS, AddVirtualDiskParent(leaf, at("mid.vhdx")));
    EXPECT(ERROR_SUCCESS, AddVirtualDiskParent(leaf, at("base.vhdx")));
    EXPECT(ERROR_VHD_INVALID_TYPE, AddVirtualDiskParent(leaf, at("a.vhdx")));

    deps = (STORAGE_DEPENDENCY_INFO *)calloc(1, 8);
    deps->Version = STORAGE_DEPENDENCY_INFO_VERSION_2;
    EXPECT(ERROR_VIRTDISK_NOT_VIRTUAL_DISK, GetStorageDependencyInformation(leaf, hosts, 8, deps, &used));
    EXPECT(ERROR_SUCCESS, AttachVirtualDisk(leaf, NULL, raw(1), 0, NULL, NULL));
    CHECK(get(leaf, 0) == 1 && get(leaf, 1 * MB) == 2);
    EXPECT(ERROR_INSUFFICIENT_BUFFER, GetStorageDependencyInformation(leaf, hosts, 4, deps, &used));
    EXPECT(ERROR_INSUFFICIENT_BUFFER, GetStorageDependencyInformation(leaf, hosts, 8, deps, &used));
    CHECK(used > 8 + 3 * sizeof(STORAGE_DEPENDENCY_INFO_TYPE_2));
    free(deps);
    deps = (STORAGE_DEPENDENCY_INFO *)calloc(1, used);
    deps->Version = STORAGE_DEPENDENCY_INFO_VERSION_2;
    EXPECT(ERROR_SUCCESS, GetStorageDependencyInformation(leaf, hosts, used, deps, &used));
    CHECK(deps->NumberEntries == 3);
    CHECK(deps->Version2Entries[0].AncestorLevel == 1 && deps->Version2Entries[2].AncestorLevel == 3);
    CHECK(deps->Version2Entries[0].DependencyTypeFlags & DEPENDENT_DISK_FLAG_MULT_BACKING_FILES);
    CHECK(deps->Version2Entries[2].DependencyTypeFlags & DEPENDENT_DISK_FLAG_PARENT);
    CHECK(deps->Version2Entries[0].DependentVolumeRelativePath[0] == '/');
    CHECK(deps->Version2Entries[0].DependentVolumeName[0] == 0);
    deps->Version = STORAGE_DEPENDENCY_INFO_VERSION_1;
    EXPECT(ERROR_SUCCESS, GetStorageDependencyInformation(leaf, hosts, used, deps, &used));
    CHECK(deps->NumberEntries == 3 && used == 8 + 3 * sizeof(STORAGE_DEPENDENCY_INFO_TYPE_1));
    EXPECT(ERROR_SUCCESS, GetStorageDependencyInformation(leaf, GET_STORAGE_DEPENDENCY_FLAG_DISK_HANDLE, used, deps, &used));
    CHECK(deps->NumberEntries == 0 && used == 8);
    free(deps);
    close_handle(leaf);
}

int main(int argc, char **argv) {
    start(argc, argv);
    kinds();
    buffers();
    parents();
    identities();
    chain_by_hand_and_dependencies();
    return 0;
}
