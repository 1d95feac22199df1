/*
 * vhdkit_win32.h - the few Win32 types, codes and calls that programs written for virtdisk.h need.
 *
 * For C11 and C++17 on systems that are not Windows, with and without -fshort-wchar. WCHAR is 16 bits wide: wchar_t with
 * -fshort-wchar (so that L"..." is a Windows string), else char16_t (u"...").
 *
 * A program that brings its own windows.h includes it before virtdisk.h. What it has is left out here:
 *   VHDKIT_NO_WIN32        everything but error codes (also left out when _WINDOWS_, _WINDEF_ or _MINWINDEF_ is defined);
 *   VHDKIT_NO_WIN32_CALLS  the functions; VHDKIT_NO_CLOSEHANDLE and so on leave out one of them;
 *   GUID_DEFINED           the type GUID;
 *   DEFINE_GUID, DEFINE_ENUM_FLAG_OPERATORS, WINAPI and each code: left alone if defined.
 * Objects of another implementation are not objects of this one: the handles, and OVERLAPPED.hEvent, that virtdisk's
 * functions accept come from virtdisk's functions and from those below.
 */

/* Outside the guard: INITGUID may be defined between two inclusions, as with Microsoft's initguid.h. */
#if !defined(DEFINE_GUID) || defined(VHDKIT_DEFINED_DEFINE_GUID)
#undef DEFINE_GUID
#ifndef VHDKIT_DEFINED_DEFINE_GUID
#define VHDKIT_DEFINED_DEFINE_GUID
#endif
#ifdef __cplusplus
#define VHDKIT_EXTERN_C extern "C"
#else
#define VHDKIT_EXTERN_C extern
#endif
#ifdef INITGUID
#define DEFINE_GUID(name, l, w1, w2, b1, b2, b3, b4, b5, b6, b7, b8)                               \
    VHDKIT_EXTERN_C __attribute__((weak)) const GUID name;                                         \
    const GUID name = {                                                                            \
        l, w1, w2, {b1, b2, b3, b4, b5, b6, b7, b8}}
#else
#define DEFINE_GUID(name, l, w1, w2, b1, b2, b3, b4, b5, b6, b7, b8) VHDKIT_EXTERN_C const GUID name
#endif
#endif

#ifndef VHDKIT_WIN32_H
#define VHDKIT_WIN32_H

#include <stddef.h>
#include <stdint.h>

#if !defined(VHDKIT_NO_WIN32) && (defined(_WINDOWS_) || defined(_WINDEF_) || defined(_MINWINDEF_))
#define VHDKIT_NO_WIN32
#endif

#ifndef WINAPI
#define WINAPI
#endif

#ifndef EXTERN_C
#ifdef __cplusplus
#define EXTERN_C extern "C"
#else
#define EXTERN_C extern
#endif
#endif

/* In C++, the operators of an enumeration of flags. */
#ifndef DEFINE_ENUM_FLAG_OPERATORS
#ifdef __cplusplus
#define DEFINE_ENUM_FLAG_OPERATORS(T)                                                              \
    extern "C++" {                                                                                 \
    constexpr inline T operator|(T a, T b) { return T(uint32_t(a) | uint32_t(b)); }                \
    constexpr inline T operator&(T a, T b) { return T(uint32_t(a) & uint32_t(b)); }                \
    constexpr inline T operator^(T a, T b) { return T(uint32_t(a) ^ uint32_t(b)); }                \
    constexpr inline T operator~(T a) { return T(~uint32_t(a)); }                                  \
    inline T &operator|=(T &a, T b) { return a = a | b; }                                          \
    inline T &operator&=(T &a, T b) { return a = a & b; }                                          \
    inline T &operator^=(T &a, T b) { return a = a ^ b; }                                          \
    }
#else
#define DEFINE_ENUM_FLAG_OPERATORS(T)
#endif
#endif

#ifndef VHDKIT_NO_WIN32

#if defined(__SIZEOF_WCHAR_T__) && __SIZEOF_WCHAR_T__ == 2
typedef wchar_t WCHAR;
#elif defined(__cplusplus)
typedef char16_t WCHAR;
#else
#include <uchar.h>
typedef char16_t WCHAR;
#endif

typedef void *PVOID, *LPVOID;
typedef const void *LPCVOID;
typedef void *HANDLE, **PHANDLE, **LPHANDLE;
typedef int32_t BOOL, *PBOOL, *LPBOOL;
typedef int32_t INT, LONG;
typedef uint8_t BYTE, UCHAR, *PBYTE, *PUCHAR, *LPBYTE;
typedef char CHAR, *PSTR, *LPSTR;
typedef const char *PCSTR, *LPCSTR;
typedef uint16_t WORD, USHORT;
typedef uint32_t DWORD, ULONG, UINT, *PDWORD, *LPDWORD, *PULONG;
typedef uint64_t ULONGLONG, ULONG64, DWORD64, *PULONGLONG, *PULONG64;
typedef int64_t LONGLONG;
typedef uintptr_t ULONG_PTR, DWORD_PTR;
typedef WCHAR *PWSTR, *LPWSTR, *PWCHAR;
typedef const WCHAR *PCWSTR, *LPCWSTR;
typedef PVOID PSECURITY_DESCRIPTOR;

#ifndef VOID
#define VOID void
#endif
#ifndef TRUE
#define TRUE 1
#endif
#ifndef FALSE
#define FALSE 0
#endif
#ifndef INVALID_HANDLE_VALUE
#define INVALID_HANDLE_VALUE ((HANDLE)(intptr_t)-1)
#endif
#ifndef INFINITE
#define INFINITE 0xFFFFFFFFu
#endif

#ifndef GUID_DEFINED
#define GUID_DEFINED
typedef struct _GUID {
    uint32_t Data1;
    uint16_t Data2;
    uint16_t Data3;
    uint8_t Data4[8];
} GUID;
#endif

typedef struct _SECURITY_ATTRIBUTES {
    DWORD nLength;
    LPVOID lpSecurityDescriptor;
    BOOL bInheritHandle;
} SECURITY_ATTRIBUTES, *PSECURITY_ATTRIBUTES, *LPSECURITY_ATTRIBUTES;

typedef struct _OVERLAPPED {
    ULONG_PTR Internal;     /* STATUS_PENDING while an operation is under way */
    ULONG_PTR InternalHigh; /* bytes transferred */
    __extension__ union {
        __extension__ struct {
            DWORD Offset;
            DWORD OffsetHigh;
        };
        PVOID Pointer;
    };
    HANDLE hEvent; /* NULL, or an event of CreateEventW */
} OVERLAPPED, *LPOVERLAPPED;

#ifndef HasOverlappedIoCompleted
#define HasOverlappedIoCompleted(o) (((DWORD)(o)->Internal) != STATUS_PENDING)
#endif

#ifndef VHDKIT_NO_WIN32_CALLS
#ifdef __cplusplus
extern "C" {
#endif

/* Each function that fails says why through GetLastError. */
#ifndef VHDKIT_NO_GETLASTERROR
DWORD WINAPI GetLastError(void);
void WINAPI SetLastError(DWORD dwErrCode);
#endif

/* Events have no names: lpName is NULL. The attributes are not used. */
#ifndef VHDKIT_NO_CREATEEVENT
HANDLE WINAPI CreateEventW(LPSECURITY_ATTRIBUTES lpEventAttributes, BOOL bManualReset,
                           BOOL bInitialState, LPCWSTR lpName);
#ifndef CreateEvent
#define CreateEvent CreateEventW
#endif
#endif
#ifndef VHDKIT_NO_SETEVENT
BOOL WINAPI SetEvent(HANDLE hEvent);
BOOL WINAPI ResetEvent(HANDLE hEvent);
#endif
/* Waits for an event, or until a virtual disk handle has no operation under way. */
#ifndef VHDKIT_NO_WAITFORSINGLEOBJECT
DWORD WINAPI WaitForSingleObject(HANDLE hHandle, DWORD dwMilliseconds);
#endif
/* Closes an event or a virtual disk handle. Operations of the handle are cancelled and waited for. */
#ifndef VHDKIT_NO_CLOSEHANDLE
BOOL WINAPI CloseHandle(HANDLE hObject);
#endif
#ifndef VHDKIT_NO_GETOVERLAPPEDRESULT
BOOL WINAPI GetOverlappedResult(HANDLE hFile, LPOVERLAPPED lpOverlapped,
                                LPDWORD lpNumberOfBytesTransferred, BOOL bWait);
#endif
#ifndef VHDKIT_NO_CANCELIO
BOOL WINAPI CancelIo(HANDLE hFile);
BOOL WINAPI CancelIoEx(HANDLE hFile, LPOVERLAPPED lpOverlapped);
#endif
/* For handles of disks attached with ATTACH_VIRTUAL_DISK_FLAG_NO_LOCAL_HOST. The OVERLAPPED, which is required, has the
 * offset on the disk; offset and length are multiples of the disk's logical sector size. */
#ifndef VHDKIT_NO_READFILE
BOOL WINAPI ReadFile(HANDLE hFile, LPVOID lpBuffer, DWORD nNumberOfBytesToRead,
                     LPDWORD lpNumberOfBytesRead, LPOVERLAPPED lpOverlapped);
BOOL WINAPI WriteFile(HANDLE hFile, LPCVOID lpBuffer, DWORD nNumberOfBytesToWrite,
                      LPDWORD lpNumberOfBytesWritten, LPOVERLAPPED lpOverlapped);
BOOL WINAPI FlushFileBuffers(HANDLE hFile);
#endif
#ifndef VHDKIT_NO_SLEEP
void WINAPI Sleep(DWORD dwMilliseconds);
#endif
/* Paths: CodePage is CP_UTF8 (or CP_ACP, which is UTF-8 here). */
#ifndef VHDKIT_NO_MULTIBYTETOWIDECHAR
int WINAPI MultiByteToWideChar(UINT CodePage, DWORD dwFlags, LPCSTR lpMultiByteStr, int cbMultiByte,
                               LPWSTR lpWideCharStr, int cchWideChar);
int WINAPI WideCharToMultiByte(UINT CodePage, DWORD dwFlags, LPCWSTR lpWideCharStr, int cchWideChar,
                               LPSTR lpMultiByteStr, int cbMultiByte, LPCSTR lpDefaultChar,
                               LPBOOL lpUsedDefaultChar);
#endif

#ifdef __cplusplus
}
#endif
#endif /* VHDKIT_NO_WIN32_CALLS */
#endif /* VHDKIT_NO_WIN32 */

#ifndef CP_ACP
#define CP_ACP 0
#endif
#ifndef CP_UTF8
#define CP_UTF8 65001
#endif
#ifndef MB_ERR_INVALID_CHARS
#define MB_ERR_INVALID_CHARS 0x00000008
#endif
#ifndef WC_ERR_INVALID_CHARS
#define WC_ERR_INVALID_CHARS 0x00000080
#endif

#ifndef STATUS_PENDING
#define STATUS_PENDING 0x00000103u
#endif
#ifndef STATUS_WAIT_0
#define STATUS_WAIT_0 0x00000000u
#endif
#ifndef WAIT_OBJECT_0
#define WAIT_OBJECT_0 0x00000000u
#endif
#ifndef WAIT_TIMEOUT
#define WAIT_TIMEOUT 258u
#endif
#ifndef WAIT_FAILED
#define WAIT_FAILED 0xFFFFFFFFu
#endif

#ifndef ERROR_SUCCESS
#define ERROR_SUCCESS 0u
#endif
#ifndef ERROR_FILE_NOT_FOUND
#define ERROR_FILE_NOT_FOUND 2u
#endif
#ifndef ERROR_PATH_NOT_FOUND
#define ERROR_PATH_NOT_FOUND 3u
#endif
#ifndef ERROR_ACCESS_DENIED
#define ERROR_ACCESS_DENIED 5u
#endif
#ifndef ERROR_INVALID_HANDLE
#define ERROR_INVALID_HANDLE 6u
#endif
#ifndef ERROR_NOT_ENOUGH_MEMORY
#define ERROR_NOT_ENOUGH_MEMORY 8u
#endif
#ifndef ERROR_OUTOFMEMORY
#define ERROR_OUTOFMEMORY 14u
#endif
#ifndef ERROR_WRITE_PROTECT
#define ERROR_WRITE_PROTECT 19u
#endif
#ifndef ERROR_NOT_READY
#define ERROR_NOT_READY 21u
#endif
#ifndef ERROR_BAD_COMMAND
#define ERROR_BAD_COMMAND 22u
#endif
#ifndef ERROR_WRITE_FAULT
#define ERROR_WRITE_FAULT 29u
#endif
#ifndef ERROR_READ_FAULT
#define ERROR_READ_FAULT 30u
#endif
#ifndef ERROR_GEN_FAILURE
#define ERROR_GEN_FAILURE 31u
#endif
#ifndef ERROR_SHARING_VIOLATION
#define ERROR_SHARING_VIOLATION 32u
#endif
#ifndef ERROR_HANDLE_EOF
#define ERROR_HANDLE_EOF 38u
#endif
#ifndef ERROR_NOT_SUPPORTED
#define ERROR_NOT_SUPPORTED 50u
#endif
#ifndef ERROR_DEV_NOT_EXIST
#define ERROR_DEV_NOT_EXIST 55u
#endif
#ifndef ERROR_FILE_EXISTS
#define ERROR_FILE_EXISTS 80u
#endif
#ifndef ERROR_INVALID_PARAMETER
#define ERROR_INVALID_PARAMETER 87u
#endif
#ifndef ERROR_DISK_FULL
#define ERROR_DISK_FULL 112u
#endif
#ifndef ERROR_INSUFFICIENT_BUFFER
#define ERROR_INSUFFICIENT_BUFFER 122u
#endif
#ifndef ERROR_INVALID_NAME
#define ERROR_INVALID_NAME 123u
#endif
#ifndef ERROR_BUSY
#define ERROR_BUSY 170u
#endif
#ifndef ERROR_ALREADY_EXISTS
#define ERROR_ALREADY_EXISTS 183u
#endif
#ifndef ERROR_FILENAME_EXCED_RANGE
#define ERROR_FILENAME_EXCED_RANGE 206u
#endif
#ifndef ERROR_FILE_TOO_LARGE
#define ERROR_FILE_TOO_LARGE 223u
#endif
#ifndef ERROR_MORE_DATA
#define ERROR_MORE_DATA 234u
#endif
#ifndef ERROR_UNSUPPORTED_COMPRESSION
#define ERROR_UNSUPPORTED_COMPRESSION 618u
#endif
#ifndef ERROR_FILE_SYSTEM_LIMITATION
#define ERROR_FILE_SYSTEM_LIMITATION 665u
#endif
#ifndef ERROR_OPERATION_ABORTED
#define ERROR_OPERATION_ABORTED 995u
#endif
#ifndef ERROR_IO_INCOMPLETE
#define ERROR_IO_INCOMPLETE 996u
#endif
#ifndef ERROR_IO_PENDING
#define ERROR_IO_PENDING 997u
#endif
#ifndef ERROR_INVALID_FLAGS
#define ERROR_INVALID_FLAGS 1004u
#endif
#ifndef ERROR_NO_UNICODE_TRANSLATION
#define ERROR_NO_UNICODE_TRANSLATION 1113u
#endif
#ifndef ERROR_NOT_FOUND
#define ERROR_NOT_FOUND 1168u
#endif
#ifndef ERROR_CANCELLED
#define ERROR_CANCELLED 1223u
#endif
#ifndef ERROR_PRIVILEGE_NOT_HELD
#define ERROR_PRIVILEGE_NOT_HELD 1314u
#endif
#ifndef ERROR_INTERNAL_ERROR
#define ERROR_INTERNAL_ERROR 1359u
#endif
#ifndef ERROR_FILE_CORRUPT
#define ERROR_FILE_CORRUPT 1392u
#endif
#ifndef ERROR_INVALID_STATE
#define ERROR_INVALID_STATE 5023u
#endif
#ifndef ERROR_FILE_ENCRYPTED
#define ERROR_FILE_ENCRYPTED 6002u
#endif
#ifndef ERROR_QUERY_STORAGE_ERROR
#define ERROR_QUERY_STORAGE_ERROR 0x803A0001u
#endif
#ifndef ERROR_VHD_DRIVE_FOOTER_MISSING
#define ERROR_VHD_DRIVE_FOOTER_MISSING 0xC03A0001u
#endif
#ifndef ERROR_VHD_DRIVE_FOOTER_CHECKSUM_MISMATCH
#define ERROR_VHD_DRIVE_FOOTER_CHECKSUM_MISMATCH 0xC03A0002u
#endif
#ifndef ERROR_VHD_DRIVE_FOOTER_CORRUPT
#define ERROR_VHD_DRIVE_FOOTER_CORRUPT 0xC03A0003u
#endif
#ifndef ERROR_VHD_FORMAT_UNKNOWN
#define ERROR_VHD_FORMAT_UNKNOWN 0xC03A0004u
#endif
#ifndef ERROR_VHD_FORMAT_UNSUPPORTED_VERSION
#define ERROR_VHD_FORMAT_UNSUPPORTED_VERSION 0xC03A0005u
#endif
#ifndef ERROR_VHD_SPARSE_HEADER_CHECKSUM_MISMATCH
#define ERROR_VHD_SPARSE_HEADER_CHECKSUM_MISMATCH 0xC03A0006u
#endif
#ifndef ERROR_VHD_SPARSE_HEADER_UNSUPPORTED_VERSION
#define ERROR_VHD_SPARSE_HEADER_UNSUPPORTED_VERSION 0xC03A0007u
#endif
#ifndef ERROR_VHD_SPARSE_HEADER_CORRUPT
#define ERROR_VHD_SPARSE_HEADER_CORRUPT 0xC03A0008u
#endif
#ifndef ERROR_VHD_BLOCK_ALLOCATION_FAILURE
#define ERROR_VHD_BLOCK_ALLOCATION_FAILURE 0xC03A0009u
#endif
#ifndef ERROR_VHD_BLOCK_ALLOCATION_TABLE_CORRUPT
#define ERROR_VHD_BLOCK_ALLOCATION_TABLE_CORRUPT 0xC03A000Au
#endif
#ifndef ERROR_VHD_INVALID_BLOCK_SIZE
#define ERROR_VHD_INVALID_BLOCK_SIZE 0xC03A000Bu
#endif
#ifndef ERROR_VHD_BITMAP_MISMATCH
#define ERROR_VHD_BITMAP_MISMATCH 0xC03A000Cu
#endif
#ifndef ERROR_VHD_PARENT_VHD_NOT_FOUND
#define ERROR_VHD_PARENT_VHD_NOT_FOUND 0xC03A000Du
#endif
#ifndef ERROR_VHD_CHILD_PARENT_ID_MISMATCH
#define ERROR_VHD_CHILD_PARENT_ID_MISMATCH 0xC03A000Eu
#endif
#ifndef ERROR_VHD_CHILD_PARENT_TIMESTAMP_MISMATCH
#define ERROR_VHD_CHILD_PARENT_TIMESTAMP_MISMATCH 0xC03A000Fu
#endif
#ifndef ERROR_VHD_METADATA_READ_FAILURE
#define ERROR_VHD_METADATA_READ_FAILURE 0xC03A0010u
#endif
#ifndef ERROR_VHD_METADATA_WRITE_FAILURE
#define ERROR_VHD_METADATA_WRITE_FAILURE 0xC03A0011u
#endif
#ifndef ERROR_VHD_INVALID_SIZE
#define ERROR_VHD_INVALID_SIZE 0xC03A0012u
#endif
#ifndef ERROR_VHD_INVALID_FILE_SIZE
#define ERROR_VHD_INVALID_FILE_SIZE 0xC03A0013u
#endif
#ifndef ERROR_VIRTDISK_PROVIDER_NOT_FOUND
#define ERROR_VIRTDISK_PROVIDER_NOT_FOUND 0xC03A0014u
#endif
#ifndef ERROR_VIRTDISK_NOT_VIRTUAL_DISK
#define ERROR_VIRTDISK_NOT_VIRTUAL_DISK 0xC03A0015u
#endif
#ifndef ERROR_VHD_PARENT_VHD_ACCESS_DENIED
#define ERROR_VHD_PARENT_VHD_ACCESS_DENIED 0xC03A0016u
#endif
#ifndef ERROR_VHD_CHILD_PARENT_SIZE_MISMATCH
#define ERROR_VHD_CHILD_PARENT_SIZE_MISMATCH 0xC03A0017u
#endif
#ifndef ERROR_VHD_DIFFERENCING_CHAIN_CYCLE_DETECTED
#define ERROR_VHD_DIFFERENCING_CHAIN_CYCLE_DETECTED 0xC03A0018u
#endif
#ifndef ERROR_VHD_DIFFERENCING_CHAIN_ERROR_IN_PARENT
#define ERROR_VHD_DIFFERENCING_CHAIN_ERROR_IN_PARENT 0xC03A0019u
#endif
#ifndef ERROR_VIRTUAL_DISK_LIMITATION
#define ERROR_VIRTUAL_DISK_LIMITATION 0xC03A001Au
#endif
#ifndef ERROR_VHD_INVALID_TYPE
#define ERROR_VHD_INVALID_TYPE 0xC03A001Bu
#endif
#ifndef ERROR_VHD_INVALID_STATE
#define ERROR_VHD_INVALID_STATE 0xC03A001Cu
#endif
#ifndef ERROR_VIRTDISK_UNSUPPORTED_DISK_SECTOR_SIZE
#define ERROR_VIRTDISK_UNSUPPORTED_DISK_SECTOR_SIZE 0xC03A001Du
#endif
#ifndef ERROR_VIRTDISK_DISK_ALREADY_OWNED
#define ERROR_VIRTDISK_DISK_ALREADY_OWNED 0xC03A001Eu
#endif
#ifndef ERROR_VIRTDISK_DISK_ONLINE_AND_WRITABLE
#define ERROR_VIRTDISK_DISK_ONLINE_AND_WRITABLE 0xC03A001Fu
#endif
#ifndef ERROR_CTLOG_TRACKING_NOT_INITIALIZED
#define ERROR_CTLOG_TRACKING_NOT_INITIALIZED 0xC03A0020u
#endif
#ifndef ERROR_CTLOG_LOGFILE_SIZE_EXCEEDED_MAXSIZE
#define ERROR_CTLOG_LOGFILE_SIZE_EXCEEDED_MAXSIZE 0xC03A0021u
#endif
#ifndef ERROR_CTLOG_VHD_CHANGED_OFFLINE
#define ERROR_CTLOG_VHD_CHANGED_OFFLINE 0xC03A0022u
#endif
#ifndef ERROR_CTLOG_INVALID_TRACKING_STATE
#define ERROR_CTLOG_INVALID_TRACKING_STATE 0xC03A0023u
#endif
#ifndef ERROR_CTLOG_INCONSISTENT_TRACKING_FILE
#define ERROR_CTLOG_INCONSISTENT_TRACKING_FILE 0xC03A0024u
#endif
#ifndef ERROR_VHD_RESIZE_WOULD_TRUNCATE_DATA
#define ERROR_VHD_RESIZE_WOULD_TRUNCATE_DATA 0xC03A0025u
#endif
#ifndef ERROR_VHD_COULD_NOT_COMPUTE_MINIMUM_VIRTUAL_SIZE
#define ERROR_VHD_COULD_NOT_COMPUTE_MINIMUM_VIRTUAL_SIZE 0xC03A0026u
#endif
#ifndef ERROR_VHD_ALREADY_AT_OR_BELOW_MINIMUM_VIRTUAL_SIZE
#define ERROR_VHD_ALREADY_AT_OR_BELOW_MINIMUM_VIRTUAL_SIZE 0xC03A0027u
#endif
#ifndef ERROR_VHD_METADATA_FULL
#define ERROR_VHD_METADATA_FULL 0xC03A0028u
#endif
#ifndef ERROR_VHD_INVALID_CHANGE_TRACKING_ID
#define ERROR_VHD_INVALID_CHANGE_TRACKING_ID 0xC03A0029u
#endif
#ifndef ERROR_VHD_CHANGE_TRACKING_DISABLED
#define ERROR_VHD_CHANGE_TRACKING_DISABLED 0xC03A002Au
#endif
#ifndef ERROR_VHD_MISSING_CHANGE_TRACKING_INFORMATION
#define ERROR_VHD_MISSING_CHANGE_TRACKING_INFORMATION 0xC03A0030u
#endif
#ifndef ERROR_VHD_UNEXPECTED_ID
#define ERROR_VHD_UNEXPECTED_ID 0xC03A0034u
#endif
#ifndef ERROR_VHD_SHARED
#define ERROR_VHD_SHARED 0xC05CFF0Au
#endif
#ifndef ERROR_VHDSET_BACKING_STORAGE_NOT_FOUND
#define ERROR_VHDSET_BACKING_STORAGE_NOT_FOUND 0xC05CFF0Cu
#endif
#endif /* VHDKIT_WIN32_H */
