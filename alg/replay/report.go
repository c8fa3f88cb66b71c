package replay

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"time"

	"ftpalg/alg"
	"ftpalg/alg/audit"
)

// Record is one event as `ftpalg replay --json` prints it, one object a line.
type Record struct {
	Event   string    `json:"event"`
	Time    time.Time `json:"time"`
	Session uint64    `json:"session"`           // 0 for what belongs to none
	Mode    string    `json:"mode,omitempty"`    // of a pinhole: PASV, EPSV, PORT, EPRT or JIT
	From    string    `json:"from,omitempty"`    // of a pinhole: the address that may connect
	To      string    `json:"to,omitempty"`      // and the address and port that it may connect to
	Client  string    `json:"client,omitempty"`  // of a session, or of what belongs to none
	Server  string    `json:"server,omitempty"`  //
	Control string    `json:"control,omitempty"` // protection of the control connection: clear or tls
	Data    string    `json:"data,omitempty"`    // of data connections: clear, tls or unknown
	User    string    `json:"user,omitempty"`
	Reason  string    `json:"reason,omitempty"`
	Text    *string   `json:"text,omitempty"` // wire text, secrets taken out; a refusal always has one
}

// NewRecord gives the record of an event.
func NewRecord(e audit.Event) Record {
	r := Record{Event: e.Kind.String(), Time: e.Time, Session: e.Session}
	if e.Reason != alg.NoReason {
		r.Reason = e.Reason.String()
	}
	switch e.Kind {
	case audit.EventPinhole, audit.EventClosed:
		r.Mode, r.From, r.To = e.Mode.String(), e.From.Addr().String(), e.To.String()
	case audit.EventProtection:
		r.Control, r.Data = e.Protection.Control.String(), e.Protection.Data.String()
	case audit.EventLogin:
		r.User = e.Text
	case audit.EventSession:
		r.Client, r.Server = address(e.From), address(e.To)
	default:
		if e.Text != "" || e.Kind == audit.EventDeny {
			r.Text = &e.Text
		}
		if e.Session == 0 {
			r.Client, r.Server = address(e.From), address(e.To)
		}
	}
	return r
}

func address(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// JSON gives a reporter that prints records.
func JSON(w io.Writer) func(audit.Event) {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return func(e audit.Event) {
		e.Text = audit.Printable(e.Text)
		_ = enc.Encode(NewRecord(e))
	}
}

// Text gives a reporter for people: one event a line, with the seconds since the first.
func Text(w io.Writer) func(audit.Event) {
	var first time.Time
	return func(e audit.Event) {
		if first.IsZero() {
			first = e.Time
		}
		fmt.Fprintf(w, "%10.3f  #%-3d  %-14s  %s\n", e.Time.Sub(first).Seconds(), e.Session, e.Kind, NewRecord(e).details())
	}
}

// details is the part of a record that its kind does not tell yet.
func (r Record) details() string {
	switch r.Event {
	case "pinhole":
		return fmt.Sprintf("%-4s  %s → %s", r.Mode, r.From, r.To)
	case "pinhole-closed":
		return fmt.Sprintf("%-4s  %s → %s  (%s)", r.Mode, r.From, r.To, r.Reason)
	case "protection":
		return "control " + r.Control + ", data " + r.Data
	case "login":
		return strconv.Quote(r.User)
	}
	s := r.Reason
	if r.Client != "" {
		s = r.Client + " → " + r.Server + "  " + s
	}
	if r.Text != nil && *r.Text != "" {
		s += "  " + strconv.Quote(*r.Text)
	}
	return s
}
