package replay

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"time"
)

// frame is one packet of a capture with its link header.
type frame struct {
	at   time.Time
	link linkType
	data []byte // good until the next call of next
}

// file reads the frames of a capture. io.EOF comes only between two of them; an end elsewhere is io.ErrUnexpectedEOF.
type file interface {
	next() (frame, error)
}

// maxPacket is the longest packet that a capture may hold: libpcap's MAXIMUM_SNAPLEN. What a file itself says of its
// snap length is often wrong, and never to be trusted with how much memory a packet takes.
const maxPacket = 262144

var gzipMagic = []byte{0x1f, 0x8b}

// open finds out which kind of file it is by its first bytes.
func open(r io.Reader) (file, error) {
	b := bufio.NewReaderSize(r, 1<<16)
	magic, err := b.Peek(len(gzipMagic))
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return nil, err // a directory, for one
	case len(magic) == 0:
		return nil, errors.New("the file is empty")
	case bytes.Equal(magic, gzipMagic):
		unzipped, err := gzip.NewReader(b)
		if err != nil {
			return nil, fmt.Errorf("gzip: %w", err)
		}
		b = bufio.NewReaderSize(unzipped, 1<<16)
	}
	magic, err = b.Peek(magicLength)
	if err != nil {
		return nil, fmt.Errorf("neither pcap nor pcapng: %d bytes: %w", len(magic), err)
	}
	if isSectionHeader(magic) {
		return &pcapng{r: b}, nil
	}
	return openPcap(b)
}

// magicLength is how many bytes tell one kind of file from another.
const magicLength = 4

// inside fills b with what has to follow in the middle of a frame or block.
func inside(r io.Reader, b []byte) error {
	_, err := io.ReadFull(r, b)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}
