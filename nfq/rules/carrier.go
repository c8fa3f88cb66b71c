package rules

import (
	"fmt"

	"golang.org/x/net/bpf"
)

// The carrier "sane" (conntrack.Helper) is silent as long as no client asks it for something: a segment of exactly eight bytes
// that begins with SANE_NET_START is such a request, and the server's next segment then names a port that the kernel opens
// (nf_conntrack_sane, help). It looks at each segment by itself, whatever the connection is about, and inside TLS as well. So
// no such segment gets as far as the helper, which runs when everything else is done with a packet (NF_IP_PRI_CONNTRACK_HELPER).
// Package inspect cuts those that it reads. What these rules stop is never let go on: the connection hangs and ends, which
// befalls one of four thousand million honest segments of that size.
const (
	saneRequestLen = 8
	saneNetStart   = 7 // SANE_NET_START, the first four bytes
)

// Chains before the helper: of what is forwarded, and of what ftpalg's own sockets receive.
const (
	carrierChain      = prefix + "CARRIER"
	carrierInputChain = prefix + "CARRIER-IN"

	whyCarrier = "The helper 'sane' must never see a request of its own protocol: it would open a port of the server's."
)

// carrierGuard makes the chains that keep requests from the helper. They stand in the mangle table, where no rule of others
// lets a packet skip them; and whatever helper is chosen now, since connections may have one that was chosen before.
func (b *builder) carrierGuard() []Chain {
	chains := []Chain{b.requests(carrierChain, "FORWARD", func(s server) []face { return s.own })}
	if b.terminatesAny() {
		chains = append(chains, b.requests(carrierInputChain, "INPUT", func(s server) []face { return s.faces }))
	}
	return chains
}

// requests is a chain that drops requests to some faces of each server.
func (b *builder) requests(name, hook string, faces func(server) []face) Chain {
	c := Chain{Name: name, Hook: hook}
	b.dataGoesOn(&c, "")
	for _, s := range b.servers {
		for _, f := range faces(s) {
			for _, ports := range f.ports {
				c.add(whyCarrier, `-d %s -p tcp -m multiport --dports %s -m bpf --bytecode "%s" -j DROP`,
					f.address, ports, bytecode(saneRequest(b.v6)))
			}
		}
	}
	return c
}

// carrierGuard is the same for nft.
func (n *nft) carrierGuard() {
	forward := Chain{Name: "carrier_forward", Hook: "type filter hook forward priority mangle; policy accept;"}
	input := Chain{Name: "carrier_input", Hook: "type filter hook input priority mangle; policy accept;"}
	request := Chain{Name: "carrier_request"}
	request.add("More than eight bytes are no request.", "@ih,%d,8 >= 0 return", 8*saneRequestLen)
	request.add(whyCarrier, "@ih,0,64 & 0xffffffff00000000 == %#016x drop", saneNetStart<<32)
	for _, b := range n.builders {
		rule := fmt.Sprintf("tcp dport %s %s daddr . tcp dport @control%s goto %s", n.ports(), b.ip(), b.digit(), request.Name)
		forward.add("Control connections, from their clients.", "%s", rule)
		if b.terminatesAny() {
			input.add("Those that ftpalg terminates.", "%s", rule)
		}
	}
	n.add(forward, input, request)
}

// saneRequest matches segments that are such a request. Where IPv6 has extension headers the TCP header may be anywhere: then
// any packet matches that ends in eight bytes which could be one, as nobody sends FTP so but to evade a reader of fixed offsets.
func saneRequest(v6 bool) []bpf.Instruction {
	program := []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtLen},
		bpf.ALUOpConstant{Op: bpf.ALUOpSub, Val: saneRequestLen},
		bpf.TAX{},
		bpf.LoadIndirect{Off: 0, Size: 4},
	}
	if v6 {
		return append(program,
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: saneNetStart, SkipTrue: 10},
			bpf.LoadAbsolute{Off: 6, Size: 1},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: protoTCP, SkipTrue: 7},
			bpf.LoadAbsolute{Off: ipv6Fixed + dataOffset, Size: 1},
			bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xf0},
			bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 2},
			bpf.ALUOpConstant{Op: bpf.ALUOpAdd, Val: ipv6Fixed + saneRequestLen},
			bpf.TAX{},
			bpf.LoadExtension{Num: bpf.ExtLen},
			bpf.JumpIfX{Cond: bpf.JumpEqual, SkipFalse: 1},
			bpf.RetConstant{Val: wholePacket},
			bpf.RetConstant{Val: 0},
		)
	}
	return append(program,
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: saneNetStart, SkipTrue: 10},
		bpf.LoadMemShift{Off: 0}, // X = 4 * IHL
		bpf.LoadIndirect{Off: dataOffset, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xf0},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 2},
		bpf.ALUOpX{Op: bpf.ALUOpAdd},
		bpf.ALUOpConstant{Op: bpf.ALUOpAdd, Val: saneRequestLen},
		bpf.TAX{},
		bpf.LoadExtension{Num: bpf.ExtLen},
		bpf.JumpIfX{Cond: bpf.JumpEqual, SkipFalse: 1},
		bpf.RetConstant{Val: wholePacket},
		bpf.RetConstant{Val: 0},
	)
}
