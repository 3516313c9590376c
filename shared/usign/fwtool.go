package usign

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
)

// An image that OpenWrt's fwtool has treated ends in data and a trailer of 16
// bytes, big-endian: magic "FWx0"; the CRC-32 (IEEE) of everything before the
// trailer, earlier trailers included, without the final inversion; type (0
// signature, 1 metadata); three zero bytes; size of data and trailer together.
// Metadata lies before the signature, if both are there.
const (
	trailerMagic  = 0x46577830
	trailerSize   = 16
	maxTrailer    = 32 << 10 // data that fwtool takes out again
	maxSignature  = 1 << 10  // signature that fwtool puts in
	typeSignature = 0
)

// CutSignature returns how long the image in the first size bytes of r is
// without the signature at its end, and whether there is one. A signature is
// one only if its CRC is right. Metadata stays; only the last trailer counts,
// as for "fwtool -s /dev/null -t".
func CutSignature(r io.ReaderAt, size int64) (newSize int64, found bool, err error) {
	if size < trailerSize {
		return size, false, nil
	}
	var trailer [trailerSize]byte
	end := size - trailerSize
	if _, err := r.ReadAt(trailer[:], end); err != nil && err != io.EOF {
		return 0, false, fmt.Errorf("read the image's trailer: %w", err)
	}
	data := int64(binary.BigEndian.Uint32(trailer[12:])) - trailerSize
	if binary.BigEndian.Uint32(trailer[:]) != trailerMagic || trailer[8] != typeSignature ||
		data < 0 || data > maxTrailer || data > end {
		return size, false, nil
	}
	crc, err := imageCRC(io.NewSectionReader(r, 0, end))
	if err != nil {
		return 0, false, err
	}
	if crc != binary.BigEndian.Uint32(trailer[4:]) {
		return size, false, nil
	}
	return end - data, true, nil
}

// SignatureTrailer returns what fwtool would append to the image to make it
// carry the signature, a ucert chain: both and a trailer.
func SignatureTrailer(image io.Reader, signature []byte) ([]byte, error) {
	if len(signature) > maxSignature {
		return nil, malformed("image signature of %d bytes, at most %d are allowed", len(signature), maxSignature)
	}
	crc, err := imageCRC(io.MultiReader(image, bytes.NewReader(signature)))
	if err != nil {
		return nil, err
	}
	out := append([]byte{}, signature...)
	out = binary.BigEndian.AppendUint32(out, trailerMagic)
	out = binary.BigEndian.AppendUint32(out, crc)
	out = append(out, typeSignature, 0, 0, 0)
	return binary.BigEndian.AppendUint32(out, uint32(len(signature)+trailerSize)), nil
}

func imageCRC(r io.Reader) (uint32, error) {
	h := crc32.NewIEEE()
	if _, err := io.Copy(h, r); err != nil {
		return 0, fmt.Errorf("read the image: %w", err)
	}
	return ^h.Sum32(), nil
}
