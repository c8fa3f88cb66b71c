package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// notifyTimeout bounds the wait for a manager that does not read what it is told: the gateway works without one.
const notifyTimeout = 2 * time.Second

// notifier tells the service manager how the daemon does (sd_notify(3)). Nil tells nobody.
type notifier struct {
	conn     net.Conn
	watchdog time.Duration // how often the manager wants to hear from us; 0 means never
	beat     time.Time     // when it last did
	status   string        // what it was told last
}

// newNotifier reaches the manager that started us, if one waits for messages. WATCHDOG_PID is not looked at: a successor
// inherits it, and takes the watchdog over with the rest.
func newNotifier() (*notifier, error) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil, nil
	}
	conn, err := net.Dial("unixgram", path) // a name that begins with @ is an abstract one, here as there
	if err != nil {
		return nil, fmt.Errorf("reach the service manager at NOTIFY_SOCKET: %w", err)
	}
	n := &notifier{conn: conn}
	if text := os.Getenv("WATCHDOG_USEC"); text != "" {
		usec, err := strconv.ParseInt(text, 10, 64)
		if err != nil || usec <= 0 {
			return nil, fmt.Errorf("WATCHDOG_USEC=%q is no number of microseconds", text)
		}
		n.watchdog = time.Duration(usec) * time.Microsecond
	}
	return n, nil
}

// say sends variables of sd_notify(3) in one message. A manager that is gone cannot be told so.
func (n *notifier) say(variables ...string) {
	if n != nil {
		_ = n.conn.SetWriteDeadline(time.Now().Add(notifyTimeout))
		_, _ = n.conn.Write([]byte(strings.Join(variables, "\n")))
	}
}

// reloading announces a reload; say READY=1 when it is over.
func (n *notifier) reloading() {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // Linux has this clock
	n.say("RELOADING=1", fmt.Sprintf("MONOTONIC_USEC=%d", now.Nano()/1000))
}

// alive says that the daemon works, half the watchdog's time after it last did, and what it does if that has changed.
func (n *notifier) alive(now time.Time, status string) {
	if n == nil {
		return
	}
	var variables []string
	if n.watchdog > 0 && now.Sub(n.beat) >= n.watchdog/2 {
		n.beat = now
		variables = append(variables, "WATCHDOG=1")
	}
	if status != n.status {
		n.status = status
		variables = append(variables, "STATUS="+status)
	}
	if len(variables) > 0 {
		n.say(variables...)
	}
}
