// Compacts a disk as a program for Windows does: DllImport("virtdisk.dll"). On other systems Mono is told by
// Shrink.exe.config which library that is.
//
//     mono Shrink.exe DISK
using System;
using System.IO;
using System.Runtime.InteropServices;
using System.Threading;

static class Shrink
{
    const uint ERROR_SUCCESS = 0, ERROR_IO_PENDING = 997;
    const int OPEN_VIRTUAL_DISK_VERSION_2 = 2, COMPACT_VIRTUAL_DISK_VERSION_1 = 1, GET_VIRTUAL_DISK_INFO_SIZE = 1;
    const int VIRTUAL_DISK_ACCESS_NONE = 0;

    [StructLayout(LayoutKind.Sequential)]
    struct VirtualStorageType
    {
        public int DeviceId;
        public Guid VendorId;
    }

    [StructLayout(LayoutKind.Sequential)]
    struct OpenVirtualDiskParameters
    {
        public int Version;
        [MarshalAs(UnmanagedType.Bool)] public bool GetInfoOnly;
        [MarshalAs(UnmanagedType.Bool)] public bool ReadOnly;
        public Guid ResiliencyGuid;
    }

    [StructLayout(LayoutKind.Sequential)]
    struct CompactVirtualDiskParameters
    {
        public int Version;
        public int Reserved;
    }

    [StructLayout(LayoutKind.Sequential)]
    struct VirtualDiskProgress
    {
        public uint OperationStatus;
        public ulong CurrentValue;
        public ulong CompletionValue;
    }

    [StructLayout(LayoutKind.Sequential)]
    struct GetVirtualDiskInfoSize
    {
        public int Version;
        public ulong VirtualSize;
        public ulong PhysicalSize;
        public uint BlockSize;
        public uint SectorSize;
    }

    [DllImport("virtdisk.dll", CharSet = CharSet.Unicode)]
    static extern uint OpenVirtualDisk(ref VirtualStorageType storageType, string path, int accessMask, int flags,
        ref OpenVirtualDiskParameters parameters, out IntPtr handle);

    [DllImport("virtdisk.dll")]
    static extern uint CompactVirtualDisk(IntPtr handle, int flags, ref CompactVirtualDiskParameters parameters,
        IntPtr overlapped);

    [DllImport("virtdisk.dll")]
    static extern uint GetVirtualDiskOperationProgress(IntPtr handle, IntPtr overlapped,
        out VirtualDiskProgress progress);

    [DllImport("virtdisk.dll")]
    static extern uint GetVirtualDiskInformation(IntPtr handle, ref uint size, ref GetVirtualDiskInfoSize info,
        IntPtr sizeUsed);

    [DllImport("kernel32.dll")]
    [return: MarshalAs(UnmanagedType.Bool)]
    static extern bool CloseHandle(IntPtr handle);

    static ulong Megabytes(IntPtr disk)
    {
        var info = new GetVirtualDiskInfoSize { Version = GET_VIRTUAL_DISK_INFO_SIZE };
        uint size = (uint)Marshal.SizeOf(info);
        Check(GetVirtualDiskInformation(disk, ref size, ref info, IntPtr.Zero));
        return info.PhysicalSize / (1024 * 1024);
    }

    static void Check(uint code)
    {
        if (code != ERROR_SUCCESS)
            throw new IOException(string.Format("error {0} (0x{0:X})", code));
    }

    static int Main(string[] args)
    {
        if (args.Length != 1)
        {
            Console.Error.WriteLine("usage: Shrink DISK");
            return 2;
        }
        var type = new VirtualStorageType();
        var open = new OpenVirtualDiskParameters { Version = OPEN_VIRTUAL_DISK_VERSION_2 };
        var compact = new CompactVirtualDiskParameters { Version = COMPACT_VIRTUAL_DISK_VERSION_1 };
        IntPtr disk;
        // An operation is known by the address of its OVERLAPPED, so that must not move.
        IntPtr overlapped = Marshal.AllocHGlobal(Marshal.SizeOf(typeof(NativeOverlapped)));
        Marshal.StructureToPtr(new NativeOverlapped(), overlapped, false);
        Check(OpenVirtualDisk(ref type, Path.GetFullPath(args[0]), VIRTUAL_DISK_ACCESS_NONE, 0, ref open, out disk));
        Console.WriteLine("before: {0} MB", Megabytes(disk));

        uint started = CompactVirtualDisk(disk, 0, ref compact, overlapped);
        if (started != ERROR_IO_PENDING)
            Check(started);
        VirtualDiskProgress progress;
        for (;;)
        {
            Check(GetVirtualDiskOperationProgress(disk, overlapped, out progress));
            if (progress.OperationStatus != ERROR_IO_PENDING)
                break;
            Thread.Sleep(1);
        }
        Check(progress.OperationStatus);
        Console.WriteLine("after: {0} MB", Megabytes(disk));
        CloseHandle(disk);
        Marshal.FreeHGlobal(overlapped);
        return 0;
    }
}
