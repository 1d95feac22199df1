/* The one part that is not Windows source: Windows hands wmain wide strings, other systems hand main bytes. */
#ifndef ARGUMENTS_H
#define ARGUMENTS_H

#include <windows.h>

#include <stdio.h>
#include <unistd.h>

/* A file as an absolute path in UTF-16; NULL (and a message) if there is no such path. */
static inline LPCWSTR FullPath(const char *name) {
    static WCHAR paths[4][4096];
    static int next;
    char path[4096], folder[2048];
    LPWSTR wide = paths[next++ % 4];
    int length = -1;
    if (name[0] == '/')
        length = snprintf(path, sizeof path, "%s", name);
    else if (getcwd(folder, sizeof folder))
        length = snprintf(path, sizeof path, "%s/%s", folder, name);
    if (length < 0 || length >= (int)sizeof path ||
        MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, wide, 4096) == 0) {
        fprintf(stderr, "%s: not a path\n", name);
        return NULL;
    }
    return wide;
}

#endif
