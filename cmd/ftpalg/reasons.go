package main

import (
	"strings"

	"ftpalg/alg"
)

// reasons lists every reason that a log line may have, with the reply that terminated clients get where it refuses something.
func (p *page) reasons() {
	p.section("REASONS")
	p.text("What reason= in a log line says, and after it the reply of terminated sessions where there is one. In inspected sessions a " +
		"denied command is overwritten, so that the server answers that it does not know it; a reply that must not announce a " +
		"port becomes a 425, and what ends a session resets it.")
	for _, r := range alg.Reasons() {
		code, _, _ := strings.Cut(r.Reply(), " ")
		p.item(r.String(), code)
		p.text(reasonTexts[r])
	}
}

// reasonTexts say what each reason means to an operator. A test compares them with the reasons that there are.
var reasonTexts = map[alg.Reason]string{
	alg.ForeignAddress:    "PORT, EPRT or 227 names an address that is not the host's own (FTP bounce, RFC 2577). See bounce in the policy.",
	alg.PrivilegedPort:    "A data port below 1024. See privileged-ports.",
	alg.BadHostPort:       "PORT, EPRT, 227 or 229 that cannot be read in one way only.",
	alg.OtherProtocol:     "EPRT of another network protocol than the control connection's.",
	alg.ModeDenied:        "A data mode that the rule does not allow, or that cannot be followed (LPRT, LPSV, SPSV).",
	alg.TransferMode:      "MODE other than S, or STRU other than F, where max-size is counted: what they do to data hides how large a file is.",
	alg.OutOfStep:         "AUTH while a command has no reply, or after replies and commands may have parted. The client may try again, or connect again.",
	alg.AfterEPSVAll:      "A data command other than EPSV after EPSV ALL.",
	alg.CommandDenied:     "The rule's commands do not allow it.",
	alg.PathDenied:        "The rule's commands do not allow it on this path.",
	alg.PathUnknown:       "A relative path where the rule is about paths and the working directory is not known: until CWD to an absolute path, or PWD, was answered; and after a restart, or out of step, for the rest of the session.",
	alg.UserDenied:        "The rule's users do not have this one.",
	alg.DirectionDenied:   "The rule's transfers do not have this direction.",
	alg.FileDenied:        "The rule's files do not allow the name.",
	alg.TLSRequired:       "The rule has require: tls, and this is USER outside TLS; or CCC, or PROT C where data has to be in TLS.",
	alg.OpaqueDenied:      "TLS that would stay closed where the rule has opaque: deny, or another mechanism than TLS that would hide commands.",
	alg.NoCertificate:     "AUTH where the rule terminates and the server has neither certificates nor an authority.",
	alg.StatListing:       "STAT with options or a pattern: names of files would be lines of its reply, and a client could make one that is a reply itself. LIST lists as well.",
	alg.StartUnknown:      "The first line after a restart may begin with bytes that went on before, and what follows them would be denied.",
	alg.BadCommand:        "Not a command (RFC 959 section 5.3).",
	alg.BadCharacters:     "NUL, a CR without LF, or a Telnet sequence that servers read differently.",
	alg.BareLineFeed:      "A line that ends in LF without CR. Not every server takes that for its end, so it is refused where the rule rests on state, and else let pass.",
	alg.BlankLine:         "A line without text. One of Telnet signals alone is refused.",
	alg.LineTooLong:       "A line over limits.line.",
	alg.UnsolicitedReply:  "227 or 229 to a command that does not ask for it. It opens nothing.",
	alg.ExpectationFailed: "The kernel did not take the expectation. Another line of the same reason has the kernel's error.",
	alg.PinholeLimit:      "limits.pinholes, the client's share of them, or the bound on relayed data connections is reached.",
	alg.AUTHTooLate:       "AUTH that ftpalg answers itself, from a user who is logged in, or whose login the server has begun, or out of step: in TLS nothing of what was said before may count.",
	alg.NotLoggedIn:       "PORT, EPRT, PASV or EPSV before a login that the server has accepted.",
	alg.PartialLine:       "The beginning of a restricted command whose end did not come in time.",
	alg.NoRoom:            "NAT asks for an address that is longer or shorter than the announced one, and the sequence numbers cannot be moved again yet.",

	alg.NotFTP:             "What the server or the client says is not FTP: another protocol's first line, several bad commands before a login, or lines without a code that do not end.",
	alg.NotTLS:             "No TLS record where one is due, or another success than 234 to AUTH.",
	alg.TextAroundAUTH:     "Clear text between AUTH and the handshake (command injection).",
	alg.TooManyOutstanding: "More commands without a reply than limits.outstanding.",
	alg.NoConnection:       "A segment of no connection that conntrack knows; or conntrack has another entry for a terminated session than the one it began with.",
	alg.SessionUnknown:     "A session that ftpalg has not seen from its beginning and knows nothing of, under a rule with users or require. The client connects again.",
	alg.LabelFailed:        "The kernel did not store in the conntrack entry whether the session is in TLS.",
	alg.PolicyDenied:       "No rule allows anything between the two hosts.",
	alg.SessionLimit:       "limits.sessions, or the client's share of it, is reached.",
	alg.InternalError:      "A fault of ftpalg ended this session alone. A line at level ERROR has the stack; please report it.",
	alg.SplitLine:          "A line has to be denied of which a part has gone on already.",
	alg.LoginLimit:         "limits.login-failures.",
	alg.IdleTimeout:        "limits.idle-timeout, or a line that was not completed in time.",
	alg.ServerUnreachable:  "The server of a terminated session does not answer.",
	alg.UpstreamTLS:        "TLS with the server of a terminated session failed, or its certificate could not be verified, or it did not greet with 220 before AUTH.",
	alg.ClientTLS:          "TLS with the client of a terminated session failed.",
	alg.ForeignExpectation: "Conntrack was made to expect a connection under this session that ftpalg did not ask for. The expectation was removed and the session ended. An alarm.",
	alg.GatewayStopped:     "ftpalg ends, and its terminated sessions with it.",

	alg.ProtectionDiffers: "The two sides protect data differently, which takes a relay, and the rule has data: direct.",
	alg.DataUnprotected:   "A data connection in clear text where client-ca or session-reuse: require ask for TLS on it.",
	alg.ReuseRequired:     "session-reuse: require, and the data connection does not resume its control connection's TLS session.",
	alg.OtherCertificate:  "client-ca, and the data connection's certificate has neither the key nor the names of the control connection's.",
	alg.TooLarge:          "The transfer is over max-size.",
	alg.DataFailed:        "The other half of a relayed data connection could not be made, or TLS on it failed.",

	alg.Used:            "The data connection came.",
	alg.TransferDone:    "The transfer is over.",
	alg.NextDataCommand: "Another data command took its place.",
	alg.RefusedByServer: "The server refused PORT or EPRT.",
	alg.SessionOver:     "The control connection ended.",
	alg.TimedOut:        "Nobody used it within pinhole-timeout.",

	alg.ConnectionClosed: "The session ended by itself.",

	alg.CreditSpent:  "A SYN got a just-in-time pinhole for a credit.",
	alg.SYNRepeated:  "The SYN that got a pinhole before was sent again.",
	alg.NoSession:    "A SYN to a data port without a control connection in closed TLS between the two hosts.",
	alg.NoCredit:     "A SYN without a credit, or credits are spent faster than the rate allows.",
	alg.OutsideRange: "A port outside the server's passive range, or a SYN from the server where opaque-active is deny.",

	alg.StrayLine:         "A server's line without a reply code, let pass.",
	alg.AUTHRefused:       "The server refused AUTH.",
	alg.OverlapRewritten:  "A segment was sent again with other content; the first content goes on.",
	alg.UrgentCleared:     "TCP urgent data, let pass as ordinary data.",
	alg.OutOfWindow:       "A segment far from the stream, dropped.",
	alg.StreamGap:         "Too much waited for a missing segment, and was dropped.",
	alg.Undecodable:       "A packet that is not whole TCP over IP, dropped.",
	alg.ReplyUnreadable:   "A reply with bad characters, let pass as it announces nothing.",
	alg.SessionResumed:    "A session was picked up in the middle, after a restart: see SESSIONS.",
	alg.UnverifiedDropped: "A segment that was sent again so late that nothing is kept to compare it with, dropped.",
	alg.Duplicate:         "A copy of a segment that is held already, dropped.",
	alg.DataInSYN:         "A SYN with payload (TCP Fast Open), dropped: its sender repeats it without.",
}
