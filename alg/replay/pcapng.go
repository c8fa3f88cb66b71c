package replay

import (
	"encoding/binary"
	"fmt"
	"io"
)

// wholeBlocks passes a pcapng file on and makes an end in the middle of a block an error: gopacket's reader takes it for
// the end of the file. A block is its type, its total length, its body, and that length again (pcapng section 3.1).
type wholeBlocks struct {
	r      io.Reader
	order  binary.ByteOrder
	header []byte // of the block that has begun: up to its byte-order magic
	left   int    // bytes of the block behind its header
}

const (
	sectionHeader    = 0x0a0d0d0a // a palindrome: the same in both byte orders
	littleEndian     = 0x1a2b3c4d // the magic that follows a section header's length, if the section is little-endian
	headerToMagic    = 12         // also the length of the shortest block
	blockLengthField = 4
	maxBlock         = 16 << 20 // libpcap's own bound
)

func (w *wholeBlocks) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if bad := w.follow(p[:n]); bad != nil {
		return 0, bad
	}
	if err == io.EOF && (len(w.header) > 0 || w.left > 0) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// follow keeps account of where in a block the bytes are.
func (w *wholeBlocks) follow(b []byte) error {
	for len(b) > 0 {
		if w.left > 0 {
			n := min(w.left, len(b))
			w.left, b = w.left-n, b[n:]
			continue
		}
		n := min(headerToMagic-len(w.header), len(b))
		w.header, b = append(w.header, b[:n]...), b[n:]
		if len(w.header) < headerToMagic {
			return nil
		}
		if binary.BigEndian.Uint32(w.header) == sectionHeader {
			w.order = binary.BigEndian
			if binary.LittleEndian.Uint32(w.header[8:]) == littleEndian {
				w.order = binary.LittleEndian
			}
		}
		length := w.order.Uint32(w.header[blockLengthField:])
		if length < headerToMagic || length > maxBlock {
			return fmt.Errorf("a pcapng block of %d bytes, %d to %d expected", length, headerToMagic, maxBlock)
		}
		w.left, w.header = int(length)-headerToMagic, w.header[:0]
	}
	return nil
}
