package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
)

// convert writes a pcap file in the format that the name of its copy asks for.
func convert(from, to string) error {
	pcap, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	switch {
	case strings.HasSuffix(to, ".pcapng"):
		pcap, err = pcapng(pcap)
	case strings.HasSuffix(to, ".gz"):
		pcap, err = zip(pcap)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", to, err)
	}
	return os.WriteFile(to, pcap, 0o644)
}

func pcapng(pcap []byte) ([]byte, error) {
	r, err := pcapgo.NewReader(bytes.NewReader(pcap))
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	w, err := pcapgo.NewNgWriter(&out, layers.LinkTypeEthernet)
	if err != nil {
		return nil, err
	}
	for {
		data, info, err := r.ReadPacketData()
		if errors.Is(err, io.EOF) {
			err = w.Flush()
			return out.Bytes(), err
		}
		if err == nil {
			info.InterfaceIndex = 0
			err = w.WritePacket(info, data)
		}
		if err != nil {
			return nil, err
		}
	}
}

func zip(pcap []byte) ([]byte, error) {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(pcap)
	err = errors.Join(err, w.Close())
	return out.Bytes(), err
}

// truncate copies a file up to the middle of a packet in its second half, as a full disk leaves it.
func truncate(from, to string) error {
	pcap, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	const headers = 24 + 16 // of the file and of a packet
	end := headers
	for end < len(pcap)*3/4 {
		size := uint32(pcap[end-8]) | uint32(pcap[end-7])<<8 | uint32(pcap[end-6])<<16 | uint32(pcap[end-5])<<24
		end += int(size) + 16
	}
	return os.WriteFile(to, pcap[:end+5], 0o644)
}
