package lab

import (
	"strings"
	"testing"

	"ftpalg/conntrack"
)

// Where the kernel lets user space define helpers, as Debian's does, control connections carry ftpalg's own, which conntrack
// shows, and elsewhere a silent one of the kernel's.
func TestHelperShown(t *testing.T) {
	requireRoot(t)
	binary, err := buildDaemon()
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewStage(t.Context(), Servers[0], Config{ServersDir: serversDir, Binary: binary})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	c, err := s.dial(Scenario{Server: Servers[0], Client: held, Mode: PASV, Family: IPv4, Protection: Plain})
	if err != nil {
		t.Fatal(err)
	}
	defer c.conn.Close()
	list, err := s.Lab.Run(t.Context(), Gateway, "conntrack", "-L", "-p", "tcp", "--orig-port-dst", "21")
	if err != nil {
		t.Fatal(err)
	}
	_, helper, _ := strings.Cut(list, " helper=")
	helper, _, _ = strings.Cut(helper, " ")
	if own := helper == conntrack.OwnHelper; helper == "" || ownKernel && !own {
		t.Errorf("the control connection carries the helper %q, want %q on Debian's kernel: %s", helper, conntrack.OwnHelper, list)
	}
}
