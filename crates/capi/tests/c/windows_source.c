/* Source as it is written for Windows: windows.h, initguid.h, L"..." strings. Compiled with -fshort-wchar. */
#define UNICODE
#include <windows.h>
#include <initguid.h>
#include <virtdisk.h>

static WCHAR folder[512];

static LPCWSTR PathOf(LPWSTR buffer, LPCWSTR name) {
    int n = 0;
    LPCWSTR p;
    for (p = folder; *p; p++)
        buffer[n++] = *p;
    buffer[n++] = L'/';
    for (p = name; *p; p++)
        buffer[n++] = *p;
    buffer[n] = 0;
    return buffer;
}

static DWORD CreateDisk(LPCWSTR path, ULONGLONG size) {
    VIRTUAL_STORAGE_TYPE storageType;
    CREATE_VIRTUAL_DISK_PARAMETERS parameters;
    HANDLE vhdHandle = INVALID_HANDLE_VALUE;
    DWORD opStatus;

    ZeroMemory(&storageType, sizeof(storageType));
    storageType.DeviceId = VIRTUAL_STORAGE_TYPE_DEVICE_UNKNOWN;
    storageType.VendorId = VIRTUAL_STORAGE_TYPE_VENDOR_UNKNOWN;
    memset(&parameters, 0, sizeof(parameters));
    parameters.Version = CREATE_VIRTUAL_DISK_VERSION_2;
    parameters.Version2.MaximumSize = size;
    parameters.Version2.BlockSizeInBytes = CREATE_VIRTUAL_DISK_PARAMETERS_DEFAULT_BLOCK_SIZE;
    parameters.Version2.SectorSizeInBytes = CREATE_VIRTUAL_DISK_PARAMETERS_DEFAULT_SECTOR_SIZE;
    opStatus = CreateVirtualDisk(&storageType, path, VIRTUAL_DISK_ACCESS_NONE, NULL, CREATE_VIRTUAL_DISK_FLAG_NONE, 0,
                                 &parameters, NULL, &vhdHandle);
    if (opStatus == ERROR_SUCCESS)
        CloseHandle(vhdHandle);
    return opStatus;
}

static DWORD MirrorDisk(LPCWSTR source, LPCWSTR destination) {
    VIRTUAL_STORAGE_TYPE storageType;
    OPEN_VIRTUAL_DISK_PARAMETERS openParameters;
    MIRROR_VIRTUAL_DISK_PARAMETERS mirrorParameters;
    VIRTUAL_DISK_PROGRESS progress;
    OVERLAPPED overlapped;
    HANDLE vhdHandle = INVALID_HANDLE_VALUE;
    DWORD opStatus;

    ZeroMemory(&storageType, sizeof(storageType));
    memset(&openParameters, 0, sizeof(openParameters));
    openParameters.Version = OPEN_VIRTUAL_DISK_VERSION_2;
    opStatus = OpenVirtualDisk(&storageType, source, VIRTUAL_DISK_ACCESS_NONE, OPEN_VIRTUAL_DISK_FLAG_NONE,
                               &openParameters, &vhdHandle);
    if (opStatus != ERROR_SUCCESS)
        goto Cleanup;
    ZeroMemory(&overlapped, sizeof(overlapped));
    overlapped.hEvent = CreateEvent(NULL, TRUE, FALSE, NULL);
    mirrorParameters.Version = MIRROR_VIRTUAL_DISK_VERSION_1;
    mirrorParameters.Version1.MirrorVirtualDiskPath = destination;
    opStatus = MirrorVirtualDisk(vhdHandle, MIRROR_VIRTUAL_DISK_FLAG_NONE, &mirrorParameters, &overlapped);
    if (opStatus == ERROR_SUCCESS || opStatus == ERROR_IO_PENDING) {
        for (;;) {
            memset(&progress, 0, sizeof(progress));
            opStatus = GetVirtualDiskOperationProgress(vhdHandle, &overlapped, &progress);
            if (opStatus != ERROR_SUCCESS)
                goto Cleanup;
            if (progress.OperationStatus != ERROR_IO_PENDING) {
                opStatus = progress.OperationStatus;
                goto Cleanup;
            }
            if (progress.CurrentValue == progress.CompletionValue)
                break;
            Sleep(10);
        }
        opStatus = BreakMirrorVirtualDisk(vhdHandle);
    }
    if (opStatus == ERROR_SUCCESS && WaitForSingleObject(overlapped.hEvent, INFINITE) != WAIT_OBJECT_0)
        opStatus = GetLastError();
    CloseHandle(overlapped.hEvent);
Cleanup:
    if (vhdHandle != INVALID_HANDLE_VALUE)
        CloseHandle(vhdHandle);
    return opStatus;
}

int main(int argc, char **argv) {
    WCHAR first[600], second[600];
    if (argc != 2 || MultiByteToWideChar(CP_UTF8, 0, argv[1], -1, folder, 512) == 0)
        return 2;
#ifdef __cplusplus
    if (!IsEqualGUID(VIRTUAL_STORAGE_TYPE_VENDOR_MICROSOFT, VIRTUAL_STORAGE_TYPE_VENDOR_MICROSOFT) ||
        VIRTUAL_STORAGE_TYPE_VENDOR_MICROSOFT == VIRTUAL_STORAGE_TYPE_VENDOR_UNKNOWN)
        return 3;
#else
    if (!IsEqualGUID(&VIRTUAL_STORAGE_TYPE_VENDOR_MICROSOFT, &VIRTUAL_STORAGE_TYPE_VENDOR_MICROSOFT) ||
        IsEqualGUID(&VIRTUAL_STORAGE_TYPE_VENDOR_MICROSOFT, &VIRTUAL_STORAGE_TYPE_VENDOR_UNKNOWN))
        return 3;
#endif
    PathOf(first, L"first.vhdx");
    PathOf(second, L"second.vhdx");
    if (CreateDisk(first, 64ull * 1024 * 1024) != ERROR_SUCCESS)
        return 4;
    return MirrorDisk(first, second) == ERROR_SUCCESS ? 0 : 5;
}
