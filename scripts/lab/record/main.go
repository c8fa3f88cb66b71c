// Command record makes the captures of testdata/captures again: real clients and servers in the lab's namespaces, and
// tcpdump on the gateway. Run it as root from the top of the repository, behind scripts/setup and a build of ftpalg:
//
//	go run ./scripts/lab/record && go test ./alg/replay -run TestGolden -update
//
// Then read the golden files: what they say has to be right, not only reproducible.
//
// With -replies it makes testdata/servers instead: what each server says to each command in each state, for the model servers of
// alg/inspect/model.
//
//	go run ./scripts/lab/record -replies testdata/servers
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"ftpalg/alg/audit"
	"ftpalg/alg/replay"
	"ftpalg/policy"
	"ftpalg/scripts/lab"
)

// patience bounds everything that one recording waits for.
const patience = 30 * time.Second

// tries is how often a session may fail before that is taken for more than bad luck: see ccc.
const tries = 5

func main() {
	var r recorder
	flag.StringVar(&r.binary, "ftpalg", ".build/ftpalg", "the ftpalg on the gateway")
	flag.StringVar(&r.servers, "servers", ".build/servers", "where the FTP servers were unpacked")
	flag.StringVar(&r.out, "out", "testdata/captures", "where the captures go")
	flag.StringVar(&r.match, "match", "", "only the captures whose file name has this in it")
	flag.StringVar(&r.replies, "replies", "", "record the servers' replies into this directory, and no captures")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	record := r.recordAll
	if r.replies != "" {
		record = r.recordReplies
	}
	if err := record(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "record:", err)
		os.Exit(1)
	}
}

type recorder struct{ binary, servers, out, match, replies string }

// recordAll makes the captures, those of one server in one lab.
func (r recorder) recordAll(ctx context.Context) error {
	for _, kind := range lab.Servers {
		if err := r.recordServer(ctx, kind); err != nil {
			return fmt.Errorf("%s: %w", kind.Name, err)
		}
	}
	return truncate(filepath.Join(r.out, "pasv.pcap"), filepath.Join(r.out, "truncated.pcap"))
}

func (r recorder) recordServer(ctx context.Context, kind lab.ServerKind) (err error) {
	l, err := lab.New(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	if _, err := l.StartDaemon(ctx, r.binary, lab.Policy()); err != nil {
		return err
	}
	server, err := l.StartServer(ctx, kind, r.servers)
	if err != nil {
		return err
	}
	s := &scene{lab: l, server: server}
	for _, rec := range recordings {
		if rec.server != kind.Name || !strings.Contains(rec.file, r.match) {
			continue
		}
		err := r.record(ctx, s, rec)
		for try := 1; err != nil && try < tries; try++ {
			fmt.Fprintf(os.Stderr, "record: %s: once more: %v\n", rec.file, err)
			err = r.record(ctx, s, rec)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", rec.file, err)
		}
	}
	return nil
}

// record captures one session, on the interface to the client, where its bytes are as the client sent them.
func (r recorder) record(ctx context.Context, s *scene, rec recording) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	raw := s.lab.Path("raw.pcap")
	if err := os.RemoveAll(raw); err != nil {
		return err
	}
	tcpdump, err := s.lab.Start(ctx, lab.Gateway, "tcpdump", "-i", string(lab.Client), "--immediate-mode", "-U", "-Z", "root", "-w", raw, "tcp")
	if err != nil {
		return err
	}
	err = lab.Wait(ctx, "tcpdump to listen", func() (bool, error) {
		return strings.Contains(tcpdump.Output(), "listening on"), nil
	})
	if err == nil {
		err = rec.session(ctx, s)
	}
	if err == nil {
		err = lab.Wait(ctx, "the capture to have the end of the session", func() (bool, error) { return settled(raw) })
	}
	if err := errors.Join(err, tcpdump.Stop()); err != nil {
		return err
	}
	out := filepath.Join(r.out, rec.file)
	if err := convert(raw, out); err != nil {
		return err
	}
	info, err := os.Stat(out)
	if err == nil {
		fmt.Printf("%-28s %6d bytes\n", rec.file, info.Size())
	}
	return err
}

// settled tells whether a capture has sessions and the end of each. While tcpdump is writing, the last packet may be cut
// off, so what replay thinks of the file as a whole does not matter.
func settled(file string) (bool, error) {
	f, err := os.Open(file)
	if err != nil {
		return false, err
	}
	defer f.Close()
	begun, ended := 0, 0
	err = replay.Run(f, policy.AllowAll(), func(e audit.Event) {
		switch e.Kind {
		case audit.EventSession:
			begun++
		case audit.EventEnd:
			ended++
		}
	})
	return err == nil && begun > 0 && begun == ended, nil
}
