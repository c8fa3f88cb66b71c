package rules

import (
	"fmt"
	"strings"

	"golang.org/x/net/bpf"
)

const (
	wholePacket = 0xffff // any value but 0 is a match for xt_bpf
	protoTCP    = 6
	ipv6Fixed   = 40 // RFC 8200 section 3
	dataOffset  = 12 // the byte of the TCP header with its length in the high half (RFC 9293 section 3.1)
	tcpFlags    = 13 // and the one with its flags
	flagURG     = 0x20
)

// payloadProgram matches TCP segments with payload, and those with URG: without payload they can announce that a later
// byte is urgent, and that must not reach the receiver either (alg/inspect, clearUrgent). xt_bpf runs it with the IP
// header at offset 0 and the packet's length as the kernel trimmed it, which holds for aggregated (GRO) packets too,
// whose length field may be 0.
func payloadProgram(v6 bool) []bpf.Instruction {
	if v6 {
		return []bpf.Instruction{
			// Behind extension headers the TCP header is anywhere. Such a packet is read rather than let slip:
			// nobody sends FTP so but to evade a reader of fixed offsets.
			bpf.LoadAbsolute{Off: 6, Size: 1},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: protoTCP, SkipTrue: 9},
			bpf.LoadAbsolute{Off: ipv6Fixed + tcpFlags, Size: 1},
			bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: flagURG, SkipTrue: 7},
			bpf.LoadAbsolute{Off: ipv6Fixed + dataOffset, Size: 1},
			bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xf0},
			bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 2}, // its 32-bit words, as bytes
			bpf.ALUOpConstant{Op: bpf.ALUOpAdd, Val: ipv6Fixed},
			bpf.TAX{},
			bpf.LoadExtension{Num: bpf.ExtLen},
			bpf.JumpIfX{Cond: bpf.JumpGreaterThan, SkipFalse: 1},
			bpf.RetConstant{Val: wholePacket},
			bpf.RetConstant{Val: 0},
		}
	}
	return []bpf.Instruction{
		bpf.LoadMemShift{Off: 0}, // X = 4 * IHL
		bpf.LoadIndirect{Off: tcpFlags, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: flagURG, SkipTrue: 7},
		bpf.LoadIndirect{Off: dataOffset, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xf0},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 2},
		bpf.ALUOpX{Op: bpf.ALUOpAdd},
		bpf.TAX{},
		bpf.LoadExtension{Num: bpf.ExtLen},
		bpf.JumpIfX{Cond: bpf.JumpGreaterThan, SkipFalse: 1},
		bpf.RetConstant{Val: wholePacket},
		bpf.RetConstant{Val: 0},
	}
}

// PayloadBytecode is payloadProgram in the form of iptables' "-m bpf --bytecode".
func PayloadBytecode(v6 bool) string { return bytecode(payloadProgram(v6)) }

// bytecode is a program in that form.
func bytecode(program []bpf.Instruction) string {
	raw, err := bpf.Assemble(program)
	if err != nil {
		panic("rules: a packet filter program does not assemble: " + err.Error()) // they are constant, and tested
	}
	parts := []string{fmt.Sprint(len(raw))}
	for _, i := range raw {
		parts = append(parts, fmt.Sprintf("%d %d %d %d", i.Op, i.Jt, i.Jf, i.K))
	}
	return strings.Join(parts, ",")
}
