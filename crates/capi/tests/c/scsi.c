/* RawSCSIVirtualDisk (contract, 2.20): success says that the command arrived, the response what became of it. */
#include "check.h"

static RAW_SCSI_VIRTUAL_DISK_RESPONSE send_command(HANDLE disk, UCHAR *cdb, UCHAR length, void *data, ULONG bytes, UCHAR *sense) {
    RAW_SCSI_VIRTUAL_DISK_PARAMETERS request;
    RAW_SCSI_VIRTUAL_DISK_RESPONSE response;
    memset(&request, 0, sizeof request);
    memset(&response, 0, sizeof response);
    request.Version = RAW_SCSI_VIRTUAL_DISK_VERSION_1;
    response.Version = RAW_SCSI_VIRTUAL_DISK_VERSION_1;
    request.Version1.Cdb = cdb;
    request.Version1.CdbLength = length;
    request.Version1.DataBuffer = data;
    request.Version1.DataTransferLength = bytes;
    request.Version1.SenseInfo = sense;
    request.Version1.SenseInfoLength = 18;
    EXPECT(ERROR_SUCCESS, RawSCSIVirtualDisk(disk, &request, RAW_SCSI_VIRTUAL_DISK_FLAG_NONE, &response));
    return response;
}

int main(int argc, char **argv) {
    static UCHAR data[4096], back[4096];
    UCHAR sense[18];
    RAW_SCSI_VIRTUAL_DISK_RESPONSE r;
    HANDLE disk;
    start(argc, argv);
    disk = create("scsi.vhdx", 32 * MB);
    {
        UCHAR inquiry[6] = {0x12, 0, 0, 0, 96, 0};
        r = send_command(disk, inquiry, 6, data, 96, sense);
        EXPECT(1, r.Version1.ScsiStatus);
        CHECK(r.Version1.DataTransferLength >= 36 && memcmp(data + 8, "Msft    ", 8) == 0);
    }
    {
        UCHAR capacity[10] = {0x25};
        r = send_command(disk, capacity, 10, data, 8, sense);
        EXPECT(8, r.Version1.DataTransferLength);
        CHECK(data[0] == 0 && data[1] == 0 && data[2] == 0xFF && data[3] == 0xFF && data[6] == 2);
    }
    {
        UCHAR write10[10] = {0x2A, 0, 0, 0, 0, 9, 0, 0, 8, 0}, read10[10] = {0x28, 0, 0, 0, 0, 9, 0, 0, 8, 0};
        memset(data, 0x5A, sizeof data);
        r = send_command(disk, write10, 10, data, sizeof data, sense);
        EXPECT(1, r.Version1.ScsiStatus);
        r = send_command(disk, read10, 10, back, sizeof back, sense);
        EXPECT(4096, r.Version1.DataTransferLength);
        CHECK(memcmp(data, back, sizeof data) == 0);
    }
    {
        /* Past the end: illegal request, logical block address out of range. */
        UCHAR read10[10] = {0x28, 0, 0x7F, 0, 0, 0, 0, 0, 1, 0};
        r = send_command(disk, read10, 10, back, 512, sense);
        EXPECT(0x84, r.Version1.ScsiStatus);
        EXPECT(18, r.Version1.SenseInfoLength);
        CHECK((sense[2] & 0x0F) == 5 && sense[12] == 0x21);
    }
    close_handle(disk);
    return 0;
}
