/* For source that includes <windows.h> and needs of it only what virtdisk.h needs: add this folder to the include path, and
 * compile with -fshort-wchar for L"..." strings. */
#ifndef VHDKIT_WINDOWS_H
#define VHDKIT_WINDOWS_H

#include <string.h>
#include <wchar.h>

#include <vhdkit_win32.h>

#ifndef ZeroMemory
#define ZeroMemory(destination, length) memset((destination), 0, (length))
#endif
#ifndef CopyMemory
#define CopyMemory(destination, source, length) memcpy((destination), (source), (length))
#endif
#ifndef MAX_PATH
#define MAX_PATH 260
#endif
/* As in guiddef.h: pointers in C, references in C++. */
#ifndef IsEqualGUID
#ifdef __cplusplus
typedef const GUID &REFGUID;
inline BOOL IsEqualGUID(REFGUID a, REFGUID b) { return memcmp(&a, &b, sizeof(GUID)) == 0; }
inline bool operator==(REFGUID a, REFGUID b) { return IsEqualGUID(a, b) != FALSE; }
inline bool operator!=(REFGUID a, REFGUID b) { return !(a == b); }
#else
typedef const GUID *REFGUID;
#define IsEqualGUID(a, b) (memcmp((a), (b), sizeof(GUID)) == 0)
#endif
#endif
#ifndef UNREFERENCED_PARAMETER
#define UNREFERENCED_PARAMETER(p) ((void)(p))
#endif

#endif
