package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strconv"
	"unicode/utf16"
)

const (
	sector     = 512
	alignment  = 2048 // sectors: where the first partition begins, behind GRUB's core image
	gptEntries = 128
)

// span is a partition, in sectors.
type span struct{ start, length uint64 }

func (s span) last() uint64 { return s.start + s.length - 1 }

// genImageMain makes the beginning of a disk image, up to the root file system, any one of which may follow:
//
//	gen_image --output F --signature HEX --boot FS --boot-mb N --rootfs-mb N [--mbr F --core F] [--gpt 1]
//
// The boot sector and GRUB's core image, which follows it, are for a PC's BIOS; --gpt writes a GUID
// partition table for EFI, without the copy that belongs at the end of a disk, which is not known here.
// The initramfs finds the disk by its signature, so both kinds carry it. Like the real one it does not look
// whether a root file system fits into its partition.
func genImageMain(args []string) error {
	a := parse(args)
	signature, err := strconv.ParseUint(a.options["signature"], 16, 32)
	if err != nil {
		return err
	}
	boot, err := megabytes(a.options["boot-mb"], alignment)
	if err != nil {
		return err
	}
	root, err := megabytes(a.options["rootfs-mb"], boot.start+boot.length)
	if err != nil {
		return err
	}
	disk, err := os.Create(a.options["output"])
	if err != nil {
		return err
	}
	if a.options["gpt"] != "" {
		err = writeGPT(disk, uint32(signature), boot, root)
	} else {
		err = writeMBR(disk, uint32(signature), boot, root, a.options["mbr"], a.options["core"])
	}
	return errors.Join(err, disk.Truncate(int64(root.start*sector)), copyInto(disk, boot, a.options["boot"]), disk.Close())
}

func megabytes(n string, start uint64) (span, error) {
	size, err := strconv.ParseUint(n, 10, 32)
	return span{start, size << 20 / sector}, err
}

// holds checks that the file name fits into the partition.
func (s span) holds(name string) error {
	info, err := os.Stat(name)
	if err == nil && uint64(info.Size()) > s.length*sector {
		err = fmt.Errorf("%s has %d bytes and its partition %d", name, info.Size(), s.length*sector)
	}
	return err
}

// copyInto writes the file name at the start of a partition.
func copyInto(disk *os.File, s span, name string) error {
	if err := s.holds(name); err != nil {
		return err
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(io.NewOffsetWriter(disk, int64(s.start*sector)), f)
	return err
}

func writeMBR(disk *os.File, signature uint32, boot, root span, mbr, core string) error {
	code, err := os.ReadFile(mbr)
	if err != nil {
		return err
	}
	grub, err := os.ReadFile(core)
	if err != nil {
		return err
	}
	if len(grub) > (alignment-1)*sector {
		return fmt.Errorf("GRUB's core image has %d bytes: too many for the room before the first partition", len(grub))
	}
	table := partitionTable(signature, partition{0x80, 0x83, boot}, partition{0, 0x83, root})
	copy(table, code[:440])
	_, err1 := disk.WriteAt(table, 0)
	_, err2 := disk.WriteAt(grub, sector)
	return errors.Join(err1, err2)
}

// partition is an entry of a master boot record; its cylinder numbers say "beyond reach".
type partition struct {
	flag, kind byte
	span
}

func partitionTable(signature uint32, partitions ...partition) []byte {
	b := make([]byte, sector)
	binary.LittleEndian.PutUint32(b[440:], signature)
	for i, p := range partitions {
		e := b[446+16*i:]
		copy(e, []byte{p.flag, 0xfe, 0xff, 0xff, p.kind, 0xfe, 0xff, 0xff})
		binary.LittleEndian.PutUint32(e[8:], uint32(p.start))
		binary.LittleEndian.PutUint32(e[12:], uint32(p.length))
	}
	b[510], b[511] = 0x55, 0xaa
	return b
}

// Partition types, as they lie on disk.
var (
	typeEFI   = []byte{0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b}
	typeLinux = []byte{0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4}
)

func writeGPT(disk *os.File, signature uint32, boot, root span) error {
	end := root.start + root.length
	table := make([]byte, gptEntries*128)
	gptEntry(table[0:], typeEFI, guid(signature, 1), boot, "boot")
	gptEntry(table[128:], typeLinux, guid(signature, 2), root, "rootfs")
	_, err1 := disk.WriteAt(partitionTable(signature, partition{0, 0xee, span{1, end}}), 0)
	_, err2 := disk.WriteAt(gptHeader(signature, table, end), sector)
	_, err3 := disk.WriteAt(table, 2*sector)
	return errors.Join(err1, err2, err3)
}

// guid is unique to the disk's signature and the number of a partition (0: the disk itself).
func guid(signature uint32, n byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, signature)
	return append(b, 0, 0, 0, 0x40, 0x80, 0, 0, 0, 0, 0, 0, n)
}

func gptEntry(e, kind, id []byte, s span, name string) {
	copy(e, kind)
	copy(e[16:], id)
	binary.LittleEndian.PutUint64(e[32:], s.start)
	binary.LittleEndian.PutUint64(e[40:], s.last())
	for i, u := range utf16.Encode([]rune(name)) {
		binary.LittleEndian.PutUint16(e[56+2*i:], u)
	}
}

// gptHeader is the header of the table that follows it; end is the sector behind the last partition,
// where the copy would lie.
func gptHeader(signature uint32, table []byte, end uint64) []byte {
	var b bytes.Buffer
	b.WriteString("EFI PART")
	le := binary.LittleEndian
	for _, v := range []any{
		[]uint32{0x00010000, 92, 0, 0},
		[]uint64{1, end, 2 + gptEntries*128/sector, end - 1}, guid(signature, 0), uint64(2),
		[]uint32{gptEntries, 128, crc32.ChecksumIEEE(table)},
	} {
		binary.Write(&b, le, v)
	}
	h := b.Bytes()
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h))
	return h
}
