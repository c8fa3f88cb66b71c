package policy

import (
	"slices"
	"time"
)

// The raw structs are the file as it is written: one field a key, in the order of the canonical form. Decoding,
// encoding and the test of the reference policy all follow them, so a key cannot be known to one and not the others.
// The tag "required" refuses a mapping without the key.

type rawPolicy struct {
	Version         int           `yaml:"version,required"`
	Servers         []rawServer   `yaml:"servers,required"`
	Clients         []rawClient   `yaml:"clients"`
	Rules           []rawRule     `yaml:"rules,required"`
	Authority       rawKeyPair    `yaml:"authority"`
	Bounce          string        `yaml:"bounce"`
	PrivilegedPorts string        `yaml:"privileged-ports"`
	Fail            string        `yaml:"fail"`
	Helper          string        `yaml:"helper"`
	PinholeTimeout  time.Duration `yaml:"pinhole-timeout"`
	CreditLifetime  time.Duration `yaml:"credit-lifetime"`
	Limits          rawLimits     `yaml:"limits"`
	Tests           []rawTest     `yaml:"tests"`
}

type rawServer struct {
	Name      string   `yaml:"name,required"`
	Addresses []string `yaml:"addresses,required"`
	Explicit  []int    `yaml:"explicit"`
	Implicit  []int    `yaml:"implicit"`
	Passive   string   `yaml:"passive"`

	Public []rawPublic `yaml:"public"`

	Certificates []rawKeyPair `yaml:"certificates"`
	Upstream     rawUpstream  `yaml:"upstream"`
}

// rawPublic has nil for ports that are the server's own.
type rawPublic struct {
	Addresses []string `yaml:"addresses,required"`
	Explicit  []int    `yaml:"explicit"`
	Implicit  []int    `yaml:"implicit"`
}

type rawKeyPair struct {
	Certificate string `yaml:"certificate"`
	Key         string `yaml:"key"`
}

type rawUpstream struct {
	Control      string `yaml:"control"`
	Port         int    `yaml:"port"`
	AuthRefused  string `yaml:"auth-refused"`
	Verify       string `yaml:"verify"`
	Name         string `yaml:"name"`
	Certificate  string `yaml:"certificate"`
	Key          string `yaml:"key"`
	MinVersion   string `yaml:"min-version"`
	MaxVersion   string `yaml:"max-version"`
	Legacy       string `yaml:"legacy"`
	SessionReuse string `yaml:"session-reuse"`
}

type rawClient struct {
	Name      string   `yaml:"name,required"`
	Addresses []string `yaml:"addresses,required"`
}

type rawRule struct {
	Name         string       `yaml:"name,required"`
	From         []string     `yaml:"from"`
	To           []string     `yaml:"to"`
	Action       string       `yaml:"action,required"`
	Modes        []string     `yaml:"modes"`
	Require      string       `yaml:"require"`
	Opaque       string       `yaml:"opaque"`
	OpaqueActive string       `yaml:"opaque-active"`
	Data         string       `yaml:"data"`
	TLS          rawClientTLS `yaml:"tls"`
	Commands     rawNames     `yaml:"commands"`
	Users        rawNames     `yaml:"users"`
	Transfers    []string     `yaml:"transfers"`
	Files        rawNames     `yaml:"files"`
	MaxSize      int64        `yaml:"max-size"`
}

type rawClientTLS struct {
	MinVersion   string `yaml:"min-version"`
	MaxVersion   string `yaml:"max-version"`
	Legacy       string `yaml:"legacy"`
	ClientCA     string `yaml:"client-ca"`
	SessionReuse string `yaml:"session-reuse"`
}

type rawNames struct {
	Allow []string `yaml:"allow"`
	Deny  []string `yaml:"deny"`
}

type rawLimits struct {
	Line                int           `yaml:"line"`
	Sessions            int           `yaml:"sessions"`
	SessionsPerClient   int           `yaml:"sessions-per-client"`
	Pinholes            int           `yaml:"pinholes"`
	PinholesPerClient   int           `yaml:"pinholes-per-client"`
	Gap                 int           `yaml:"gap"`
	Outstanding         int           `yaml:"outstanding"`
	AuditRate           int           `yaml:"audit-rate"`
	Handshakes          int           `yaml:"handshakes"`
	HandshakesPerClient int           `yaml:"handshakes-per-client"`
	HandshakeTimeout    time.Duration `yaml:"handshake-timeout"`
	IdleTimeout         time.Duration `yaml:"idle-timeout"`
	LoginFailures       int           `yaml:"login-failures"`
}

type rawTest struct {
	Name     string `yaml:"name,required"`
	From     string `yaml:"from,required"`
	To       string `yaml:"to,required"`
	Port     int    `yaml:"port"`
	Dialogue string `yaml:"dialogue"`
	Command  string `yaml:"command"`
	Expect   string `yaml:"expect,required"`
}

// anyName stands for every client or every listed server in a rule.
const anyName = "any"

func defaults() rawPolicy {
	return rawPolicy{
		Version:         1,
		Bounce:          "deny",
		PrivilegedPorts: "deny",
		Fail:            "closed",
		Helper:          "auto",
		PinholeTimeout:  30 * time.Second, // long enough for a slow client, and no more than a minute's exposure
		CreditLifetime:  30 * time.Second, // some clients try the server's inside address for ten seconds and more before the right one
		Limits: rawLimits{
			Line:                4096, // a path of PATH_MAX bytes; RFC 959 sets no bound
			Sessions:            200000,
			SessionsPerClient:   1000, // a NAT in front of an office is one client address
			Pinholes:            10000,
			PinholesPerClient:   1000,  // as each session may have one
			Gap:                 65536, // one unscaled TCP window
			Outstanding:         1000,
			AuditRate:           50,
			Handshakes:          256,
			HandshakesPerClient: 64, // a quarter: one client leaves most of it to others
			HandshakeTimeout:    10 * time.Second,
			IdleTimeout:         15 * time.Minute, // servers' own are shorter: this one is for those that have none
			LoginFailures:       5,
		},
	}
}

func defaultServer() rawServer {
	return rawServer{
		Explicit: []int{21}, Implicit: []int{990}, Passive: "none",
		Upstream: rawUpstream{
			Control:      Same.String(),
			AuthRefused:  "deny",
			Verify:       "system",
			MinVersion:   "1.2",
			MaxVersion:   "1.3",
			Legacy:       "deny",
			SessionReuse: "auto",
		},
	}
}

func defaultRule() rawRule {
	return rawRule{
		From:         []string{anyName},
		To:           []string{anyName},
		Modes:        slices.Clone(modeWords[:JIT]),
		Require:      "none",
		Opaque:       "pinhole",
		OpaqueActive: "deny",
		Data:         DataAuto.String(),
		TLS:          rawClientTLS{MinVersion: "1.2", MaxVersion: "1.3", Legacy: "deny", SessionReuse: "allow"},
		Transfers:    slices.Clone(transferWords),
	}
}

func defaultTest() rawTest { return rawTest{Port: 21} }
