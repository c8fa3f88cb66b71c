package policy

import (
	"crypto/tls"
	"encoding/base64"
)

// KeyPair names a certificate chain and its private key, two PEM files. The zero value names none.
type KeyPair struct{ Certificate, Key string }

// IsZero reports whether no files are named.
func (k KeyPair) IsZero() bool { return k == KeyPair{} }

// Channel is how one side of a terminated control connection is protected.
type Channel uint8

const (
	Same     Channel = iota // as the client does: plain stays plain, AUTH leads to AUTH, implicit to implicit
	Plain                   // in clear text
	Explicit                // AUTH first (RFC 4217)
	Implicit                // TLS before the greeting
)

var channelWords = []string{Same: "same", Plain: "plain", Explicit: "explicit", Implicit: "implicit"}

// String gives the word of the policy file.
func (c Channel) String() string { return Word(channelWords, c) }

// Versions are the versions of TLS that one side may speak, as crypto/tls numbers them.
type Versions struct {
	Min, Max uint16
	Legacy   bool // TLS before 1.2, and cipher suites without forward secrecy
}

// Upstream says how a terminated control connection goes on to its server.
type Upstream struct {
	Control      Channel
	Port         uint16  // of the server; 0: the one that Server.Dial finds
	AuthRefused  Channel // Plain goes on in clear text when the server refuses AUTH; Same refuses the client's
	Verify       Verify
	Name         string  // to verify, and to send as SNI; empty: the server's address
	Client       KeyPair // shown to the server if it asks
	TLS          Versions
	SessionReuse bool // the server insists that data connections resume the control connection's session
}

// Verify says how the server's certificate is verified.
type Verify struct {
	Kind VerifyKind
	CA   string   // file, for VerifyCA
	Pin  [32]byte // SHA-256 of the SubjectPublicKeyInfo, for VerifyPin
}

// VerifyKind is what vouches for a server's certificate. The zero value is the system's roots.
type VerifyKind uint8

const (
	VerifySystem VerifyKind = iota
	VerifyNone              // nothing: by the operator's explicit word
	VerifyCA
	VerifyPin
)

// DataPath says how the data connections of a terminated control connection go.
type DataPath uint8

const (
	DataAuto   DataPath = iota // relayed where that is needed, direct otherwise
	DataDirect                 // forwarded by the kernel, untouched
	DataRelay                  // through ftpalg
)

var dataPathWords = []string{DataAuto: "auto", DataDirect: "direct", DataRelay: "relay"}

// String gives the word of the policy file.
func (d DataPath) String() string { return Word(dataPathWords, d) }

// ClientTLS is what a rule demands of its clients' TLS when it terminates them.
type ClientTLS struct {
	Versions
	CA           string // file: clients must show a certificate of this CA; empty: none is asked for
	RequireReuse bool   // data connections must resume the session of their control connection
}

// Names is a pair of lists of patterns.
type Names struct {
	Allow []string // if not empty, only these
	Deny  []string
}

// defaultVersions are those without known weaknesses.
var defaultVersions = Versions{Min: tls.VersionTLS12, Max: tls.VersionTLS13}

// versionWords are the versions that crypto/tls can speak, the oldest first; it numbers them one by one.
var versionWords = []string{"1.0", "1.1", "1.2", "1.3"}

// versionWord gives the word of the policy file.
func versionWord(version uint16) string { return versionWords[version-tls.VersionTLS10] }

// pinPrefix begins a pin, as in HTTP's key pinning (RFC 7469 section 2.4).
const pinPrefix = "sha256/"

// String gives the form of the policy file.
func (v Verify) String() string {
	switch v.Kind {
	case VerifyNone:
		return "none"
	case VerifyCA:
		return v.CA
	case VerifyPin:
		return pinPrefix + base64.StdEncoding.EncodeToString(v.Pin[:])
	}
	return "system"
}
