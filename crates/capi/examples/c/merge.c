/* Makes a chain of snapshots behind a disk, shows it, and folds it back into the disk.
 *
 *     merge DISK FIRST SECOND
 *
 * FIRST becomes a child of DISK, SECOND one of FIRST. */
#include <windows.h>
#include <initguid.h>
#include <virtdisk.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arguments.h"

static DWORD CreateChild(LPCWSTR child, LPCWSTR parent) {
    VIRTUAL_STORAGE_TYPE storageType;
    CREATE_VIRTUAL_DISK_PARAMETERS parameters;
    HANDLE disk;
    DWORD status;

    ZeroMemory(&storageType, sizeof(storageType));
    ZeroMemory(&parameters, sizeof(parameters));
    parameters.Version = CREATE_VIRTUAL_DISK_VERSION_2;
    parameters.Version2.ParentPath = parent;
    status = CreateVirtualDisk(&storageType, child, VIRTUAL_DISK_ACCESS_NONE, NULL, CREATE_VIRTUAL_DISK_FLAG_NONE, 0,
                               &parameters, NULL, &disk);
    if (status == ERROR_SUCCESS)
        CloseHandle(disk);
    return status;
}

/* Version 1 of handles: RWDepth says how many files of the chain may be written to, the leaf first. */
static DWORD Open(LPCWSTR path, VIRTUAL_DISK_ACCESS_MASK access, ULONG depth, HANDLE *disk) {
    VIRTUAL_STORAGE_TYPE storageType;
    OPEN_VIRTUAL_DISK_PARAMETERS parameters;

    ZeroMemory(&storageType, sizeof(storageType));
    ZeroMemory(&parameters, sizeof(parameters));
    parameters.Version = OPEN_VIRTUAL_DISK_VERSION_1;
    parameters.Version1.RWDepth = depth;
    return OpenVirtualDisk(&storageType, path, access, OPEN_VIRTUAL_DISK_FLAG_NONE, &parameters, disk);
}

static void PrintName(LPCWSTR path) {
    char text[4096];
    const char *name;

    if (WideCharToMultiByte(CP_UTF8, 0, path, -1, text, sizeof(text), NULL, NULL) == 0)
        return;
    name = strrchr(text, '/');
    printf("  %s\n", name ? name + 1 : text);
}

/* Asks for the parent's path, which is as long as it is: the first call says how long. */
static DWORD GetParent(HANDLE disk, LPWSTR parent, ULONG size) {
    GET_VIRTUAL_DISK_INFO *info;
    ULONG needed = sizeof(*info);
    DWORD status;

    do {
        info = (GET_VIRTUAL_DISK_INFO *)calloc(1, needed);
        if (info == NULL)
            return ERROR_NOT_ENOUGH_MEMORY;
        info->Version = GET_VIRTUAL_DISK_INFO_PARENT_LOCATION;
        status = GetVirtualDiskInformation(disk, &needed, info, NULL);
        if (status == ERROR_SUCCESS && needed <= size + 12)
            memcpy(parent, info->ParentLocation.ParentLocationBuffer, needed - 12);
        free(info);
    } while (status == ERROR_INSUFFICIENT_BUFFER);
    return status;
}

static DWORD PrintChain(LPCWSTR leaf) {
    WCHAR path[4096];
    LPCWSTR at = leaf;
    HANDLE disk;
    DWORD status;

    for (;;) {
        PrintName(at);
        status = Open(at, VIRTUAL_DISK_ACCESS_GET_INFO, 0, &disk);
        if (status != ERROR_SUCCESS)
            return status;
        status = GetParent(disk, path, sizeof(path));
        CloseHandle(disk);
        if (status == ERROR_VHD_INVALID_TYPE) /* it has no parent: the chain ends here */
            return ERROR_SUCCESS;
        if (status != ERROR_SUCCESS)
            return status;
        at = path;
    }
}

int main(int argc, char **argv) {
    MERGE_VIRTUAL_DISK_PARAMETERS parameters;
    LPCWSTR base, first, second;
    HANDLE disk;
    DWORD status;

    if (argc != 4 || (base = FullPath(argv[1])) == NULL || (first = FullPath(argv[2])) == NULL ||
        (second = FullPath(argv[3])) == NULL) {
        fprintf(stderr, "usage: merge DISK FIRST SECOND\n");
        return 2;
    }

    status = CreateChild(first, base);
    if (status == ERROR_SUCCESS)
        status = CreateChild(second, first);
    if (status == ERROR_SUCCESS) {
        printf("the chain:\n");
        status = PrintChain(second);
    }
    if (status != ERROR_SUCCESS)
        goto Done;

    /* Two parents deep, so three files are written to. */
    status = Open(second, VIRTUAL_DISK_ACCESS_METAOPS, 3, &disk);
    if (status == ERROR_SUCCESS) {
        ZeroMemory(&parameters, sizeof(parameters));
        parameters.Version = MERGE_VIRTUAL_DISK_VERSION_1;
        parameters.Version1.MergeDepth = 2;
        status = MergeVirtualDisk(disk, MERGE_VIRTUAL_DISK_FLAG_NONE, &parameters, NULL);
        CloseHandle(disk);
    }
    if (status == ERROR_SUCCESS)
        printf("merged: the children may be deleted\n");

Done:
    if (status != ERROR_SUCCESS)
        printf("not merged: error %u (0x%X)\n", (unsigned)status, (unsigned)status);
    return status == ERROR_SUCCESS ? 0 : 1;
}
