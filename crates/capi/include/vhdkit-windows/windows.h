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
#ifndef IsEqualGUID
#define IsEqualGUID(a, b) (memcmp(&(a), &(b), sizeof(GUID)) == 0)
#endif
#ifndef UNREFERENCED_PARAMETER
#define UNREFERENCED_PARAMETER(p) ((void)(p))
#endif

#endif
