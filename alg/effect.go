package alg

import (
	"net/netip"

	"ftpalg/policy"
)

// Side is one end of a control connection.
type Side uint8

const (
	Client Side = iota
	Server
)

func (s Side) String() string { return policy.Word([]string{"client", "server"}, s) }

// Other is the opposite end.
func (s Side) Other() Side { return 1 - s }

// Pinhole is one data connection that may be opened: From may connect to To.
type Pinhole struct {
	Mode   policy.Mode
	Shared bool // several clients may be behind To's address

	From netip.AddrPort // port 0: any source port
	To   netip.AddrPort
	Real netip.AddrPort // where that is, when the control connection is under NAT and To a translated address
}

// IsZero says whether there is no pinhole.
func (p Pinhole) IsZero() bool { return !p.To.IsValid() }

// Kind is what an Effect is.
type Kind uint8

const (
	// OpenPinhole: Pinhole must stand before the bytes [Start, Start+Len) go on. If it cannot, give the effect to
	// Control.Refuse. New, if there is any, has to go on in their place: it is longer or shorter.
	OpenPinhole Kind = iota + 1
	// ClosePinhole: Pinhole must go; Reason says why.
	ClosePinhole
	// Deny: the line Text was refused for Reason. A Rewrite follows where bytes have to change.
	Deny
	// Rewrite: the bytes from Start on are replaced by New, which has the same length.
	Rewrite
	// Protect: the protection of the control or data connection is now Protection.
	Protect
	// ProtectData: the data connections of a terminated session that are to come have the level of DataLevels from now on.
	ProtectData
	// Say: Side is to be told the line Text, without terminator, in a terminated session; inside TLS if Protection.Control is TLS.
	// What was fed goes no further: this stands in its place.
	Say
	// StartTLS: TLS begins with Side. It has agreed to that. If it fails nothing that follows may be carried out.
	StartTLS
	// StopTLS: the control connection with Side is in clear text from now on (CCC).
	StopTLS
	// Login: the login state changed; Text is the user's name where it is known.
	Login
	// End: nothing more may go on in this session, the bytes just fed included; Reason says why.
	End
	// Audit: nothing changes, but Reason is worth a line; Text is the line concerned.
	Audit
	// BeginTransfer: the line Text asks for a transfer in Direction, and is not denied. The server may still refuse it.
	BeginTransfer
)

// Effect is one thing that should happen, in the order given. Text and New are good until the next call of any method
// of the same Control.
type Effect struct {
	Kind       Kind
	Reason     Reason
	Side       Side // whose bytes Start counts
	Pinhole    Pinhole
	Protection Protection
	Direction  Direction
	Announced  netip.AddrPort // OpenPinhole: the address that the line names, if it does
	Start      uint64         // stream offset
	Len        int
	Text       []byte
	New        []byte
}

// Direction is where the data of a transfer goes.
type Direction uint8

const (
	NoTransfer Direction = iota
	Upload               // to the server: STOR, STOU, APPE
	Download             // to the client: RETR
	Listing              // to the client: LIST, NLST, MLSD
)

func (d Direction) String() string {
	return policy.Word([]string{"none", "upload", "download", "listing"}, d)
}

// Protection is how the two channels of a session are protected (RFC 2228 section 3, RFC 4217).
type Protection struct {
	Control Level
	Data    Level
}

// Level is a protection level.
type Level uint8

const (
	Unknown Level = iota // inside TLS that nobody opened, the data level cannot be seen
	Clear
	TLS
)

func (l Level) String() string { return policy.Word([]string{"unknown", "clear", "tls"}, l) }
