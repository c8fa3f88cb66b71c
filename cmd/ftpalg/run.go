package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"ftpalg/alg"
	"ftpalg/alg/audit"
	"ftpalg/alg/inspect"
	"ftpalg/alg/ledger"
	"ftpalg/alg/terminate"
	"ftpalg/alg/terminate/cert"
	"ftpalg/conntrack"
	"ftpalg/nfq"
	"ftpalg/nfq/doctor"
	"ftpalg/nfq/rules"
	"ftpalg/policy"
)

// How often the daemon tidies up.
const (
	expireEvery = time.Second
	sweepEvery  = time.Minute
	// keepEvery is how often the rules are looked at: firewalld, for one, empties all of iptables when it starts or reloads.
	keepEvery = 10 * time.Second
	// idleBefore is how long a session must have been idle before its conntrack entry is looked up, to see whether the
	// event of its end was lost.
	idleBefore = 10 * time.Minute
)

type runOptions struct {
	steering
	policyFile string
	noRules    bool
	socket     string
	drain      time.Duration
	logFormat  string
	logLevel   string

	queueConntrack bool
	queueBatch     int
}

func newRun() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run --policy FILE",
		Short: "Run the gateway: install the rules and carry control connections until stopped",
		Long: "Installs ftpalg's own rules, takes packets from the queues and opens pinholes. SIGHUP reads the policy " +
			"again; SIGTERM and SIGINT remove the rules and end. SIGUSR2 starts the program anew, from its file as it is " +
			"now: the new process takes over, and the old one stays until the terminated sessions that it has are over.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.policyFile == "" {
				return fmt.Errorf("%w: ftpalg run needs --policy FILE", errUsage)
			}
			if o.queueBatch < 1 || o.queueBatch > nfq.MaxBatch {
				return fmt.Errorf("%w: --queue-batch %d: 1 to %d expected", errUsage, o.queueBatch, nfq.MaxBatch)
			}
			if o.noRules && !cmd.Flags().Changed("mark") {
				o.mark = 0 // nothing answers marked packets, so they are dropped instead
			}
			return run(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	o.steering.flags(f)
	f.StringVar(&o.policyFile, "policy", "", "the policy `file`")
	f.BoolVar(&o.noRules, "no-rules", false, "install no rules: those in place steer packets here (and --mark, if given, answer marked ones)")
	f.BoolVar(&o.queueConntrack, "queue-conntrack", false, "have the kernel send conntrack's entry with each queued packet (NFQA_CT) instead of looking it up once a session")
	f.IntVar(&o.queueBatch, "queue-batch", nfq.DefaultBatch, "how many of the packets that wait in a queue are read, and their verdicts given, at a time; 1: each on its own")
	f.StringVar(&o.socket, "socket", defaultSocket, "Unix socket `path` for 'ftpalg sessions' and 'ftpalg pinholes', where nobody else can write")
	f.DurationVar(&o.drain, "drain-timeout", time.Hour, "how long terminated sessions may go on in the old process after SIGUSR2")
	f.StringVar(&o.logFormat, "log-format", "text", "text or json")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	return cmd
}

// daemon is the running gateway.
type daemon struct {
	runOptions
	log       *slog.Logger
	helper    conntrack.Helper
	nat       bool          // there was, when the helper was chosen
	noLabels  bool          // the kernel has none for our rules
	backend   rules.Backend // of the rules; chosen once, so that a reload changes rules and not their language
	told      bool          // of each queued packet's conntrack entry
	conntrack *conntrack.Conn
	books     *ledger.Books // of both front ends
	inspector *inspect.Inspector
	earlier   earlier
	reporter  *reporter
	policy    *policy.Policy             // as last loaded; only the reload task changes it
	certs     atomic.Pointer[cert.Store] // the same; whoever asks for shares reads it

	terminating *terminate.Gateway
	listeners   []*net.TCPListener // for connections to terminate
	sessions    atomic.Uint64      // the number of the newest

	hup, usr2   chan os.Signal
	manager     *notifier
	predecessor *link  // to the daemon that we take over from, or nil
	succeeded   bool   // we have taken over from it
	handed      handed // what it knows
	hasRules    bool   // to be removed: they are in force, or half so, and no successor has them
	inForce     string // the text of the rules; empty when their installation failed: they may be of two policies
}

// heapFloor is how much is allocated, at least, from one garbage collection to the next. TLS allocates 300 KiB for a relayed session, and
// with the usual 4 MiB a busy gateway spends a tenth of its processor time on collections. It is address space that nobody touches, and
// so no memory by itself.
const heapFloor = 32 << 20

// number gives the next session's number.
func (d *daemon) number() uint64 { return d.sessions.Add(1) }

func run(ctx context.Context, o runOptions) error {
	defer runtime.KeepAlive(make([]byte, heapFloor))
	log, flush, err := newLogger(os.Stderr, o.logFormat, o.logLevel)
	if err != nil {
		return err
	}
	defer flush()
	d := &daemon{runOptions: o, log: log, hup: make(chan os.Signal, 1), usr2: make(chan os.Signal, 1)}
	signal.Ignore(syscall.SIGPIPE) // a log that nobody reads any more is no reason to end
	// Both end a process that does not ask for them: so we do from the first moment to the last.
	signal.Notify(d.hup, syscall.SIGHUP)
	signal.Notify(d.usr2, syscall.SIGUSR2)
	if d.policy, err = loadPolicy(o.policyFile); err != nil {
		return err
	}
	certs, err := cert.Load(d.policy)
	if err != nil {
		return err
	}
	d.certs.Store(certs)
	for _, w := range slices.Concat(d.policy.Warnings, certs.Warnings()) {
		log.Warn("policy", "warning", w)
	}
	translates, err := rules.NAT(ctx, d.policy)
	if err != nil {
		log.Warn("rules", "warning", "whether there is source NAT is not known", "err", err)
	}
	if err := d.chooseHelper(translates); err != nil {
		return err
	}
	if d.conntrack, err = conntrack.Dial(); err != nil {
		return err
	}
	defer d.conntrack.Close()
	d.reporter = newReporter(log, func() int { return d.inspector.Policy().Limits.AuditRate })
	d.books = ledger.NewBooks(func() *policy.Limits { return &d.inspector.Policy().Limits })
	d.inspector = inspect.New(inspect.Options{
		Policy: d.policy, Conntrack: expecting{d.conntrack, d.replaceEarlier}, Books: d.books, Refused: o.mark, Report: d.reporter.report, Number: d.number,
	})
	d.terminating = d.newTerminating()
	if d.manager, err = newNotifier(); err != nil {
		return err
	}
	if d.predecessor, err = predecessor(); err != nil {
		return err
	}
	return d.serve(ctx)
}

// serve runs the daemon: its work until it ends or a successor takes it over, and the terminated sessions for as long as
// they may last.
func (d *daemon) serve(ctx context.Context) error {
	life, ctx := errgroup.WithContext(ctx)
	life.Go(func() error {
		d.terminating.Serve(ctx)
		return nil
	})
	defer d.removeRules()
	life.Go(func() error {
		successor, err := d.work(ctx)
		for errors.Is(err, errNotTaken) && ctx.Err() == nil {
			d.log.Error("no handover; this process goes on", "err", err)
			successor, err = d.work(ctx)
		}
		if err != nil || successor == nil {
			return err
		}
		return d.drainSessions(ctx, successor)
	})
	if err := life.Wait(); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, errDrained) {
		return err
	}
	d.log.Info("stopped")
	return nil
}

// work opens the queues, installs the rules and runs every task until the first ends, or until a successor has taken over,
// to which it gives the link. Behind errNotTaken it may run again. The order matters: sessions that were there before us are
// known before their packets come, and rules that queue go in after the queues.
func (d *daemon) work(ctx context.Context) (successor *link, err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	tasks, ctx := errgroup.WithContext(ctx)
	// The kernel reports the end of a connection only if somebody listened when it began.
	listening := make(chan struct{})
	tasks.Go(func() error { return d.watchEnds(ctx, sync.OnceFunc(func() { close(listening) })) })
	select {
	case <-listening:
	case <-ctx.Done():
		return nil, tasks.Wait()
	}
	tasks.Go(func() error { return d.watchExpectations(ctx, true, d.inspector, d.terminating) })
	if err := d.open(ctx, tasks); err != nil {
		stop()
		return nil, errors.Join(err, tasks.Wait())
	}
	d.log.Info("ready", "pid", os.Getpid(), "helper", d.helper.Name, "queues", d.queues.String(), "fail", failWord(d.policy),
		"queue_conntrack", d.told, "queue_batch", d.queueBatch)
	d.manager.say("READY=1", "STATUS="+d.status())
	tasks.Go(func() error { return d.tidy(ctx) })
	tasks.Go(func() error {
		isControl := func(to netip.AddrPort) bool { return d.inspector.Policy().IsControlPort(to) }
		d.conntrack.KeepControl(ctx, isControl, func(err error) {
			d.log.Warn("conntrack may forget a control connection during a transfer", "err", err)
		})
		return nil
	})
	next := make(chan *link, 1)
	tasks.Go(func() error {
		if l := d.obey(ctx, tasks); l != nil {
			next <- l
			stop()
		}
		return nil
	})
	err = tasks.Wait()
	select {
	case l := <-next:
		return l, errors.Join(err, d.handOver(l))
	default:
		d.manager.say("STOPPING=1")
		return nil, err
	}
}

// open takes what only one process can have: from the predecessor, if there is one, and else from nobody.
func (d *daemon) open(ctx context.Context, tasks *errgroup.Group) error {
	if err := d.takeOver(ctx, tasks); err != nil {
		return fmt.Errorf("take over: %w", err)
	}
	if err := errors.Join(d.resume(), d.noteEarlier()); err != nil {
		return err
	}
	for num := d.queues.first; ; num++ {
		q, err := d.openQueue(ctx, num)
		if err != nil {
			return err
		}
		d.told = q.Conntrack()
		tasks.Go(func() error {
			<-q.Done()
			return q.Err()
		})
		if num == d.queues.last {
			break
		}
	}
	questions, err := listen(d.socket) // behind the queues: of two that start at once only one gets here
	if err != nil {
		return err
	}
	tasks.Go(func() error { return d.answer(ctx, questions) })
	if err := d.listenTransparently(ctx, tasks); err != nil {
		return err
	}
	if !d.noRules {
		if d.backend == "" {
			if err := d.chooseBackend(ctx); err != nil {
				return err
			}
		}
		d.hasRules = true
		if d.handed.InForce != "" {
			d.inForce, d.handed.InForce = d.handed.InForce, ""
		}
		if err := d.ensureRules(ctx); err != nil {
			return err
		}
	}
	d.tookOver()
	return nil
}

func failWord(p *policy.Policy) string {
	if p.FailOpen {
		return "open: packets pass unread when the queue is full or ftpalg is not running"
	}
	return "closed"
}

// resume makes the control connections known that were there before us, so that they go on.
func (d *daemon) resume() error {
	before, err := d.conntrack.Connections(d.policy.IsControlPort)
	if err != nil {
		return err
	}
	for _, c := range before {
		m := d.handed.sessions[inspect.Key{Client: c.Orig.Src, Server: c.Orig.Dst}]
		if !c.Opened && !m.Opening || c.Mark&d.steering.terminate().Control != 0 {
			continue // it has not said anything yet, and perhaps never will; or it was terminated, and ended with us
		}
		d.inspector.Resume(time.Now(), c, m)
	}
	d.handed.sessions = nil
	return nil
}

// openQueue opens one queue with a decoder of its own.
func (d *daemon) openQueue(ctx context.Context, num uint16) (*nfq.Queue, error) {
	decoder := nfq.NewDecoder()
	var seg nfq.Segment
	var q *nfq.Queue
	opened := make(chan struct{})
	handle := func(p *nfq.Packet) {
		<-opened
		if err := decoder.Decode(p.Data, &seg); err != nil {
			d.reporter.report(audit.Event{Time: time.Now(), Kind: audit.EventAudit, Reason: alg.Undecodable, Err: err})
			_ = q.Verdict(p.ID, nfq.Verdict{})
			return
		}
		d.inspector.Packet(time.Now(), inspect.Packet{ID: p.ID, Mark: p.Mark, Queue: q, Conntrack: p.Conntrack}, &seg)
	}
	q, err := nfq.Open(ctx, num, nfq.Options{
		FailOpen:  d.policy.FailOpen,
		Conntrack: d.queueConntrack,
		Batch:     d.queueBatch,
		Logger:    d.reporter.queueLog(),
		OnLoss: func(l nfq.Loss) {
			d.log.Warn("packets lost before they could be read; their senders will repeat them", "queue", num,
				"queue_full", l.QueueDropped, "socket_full", l.UserDropped, "overruns", l.Overruns)
		},
	}, handle)
	close(opened)
	return q, err
}

// chooseBackend settles the language of the rules, and warns of a firewall that will not heed them.
func (d *daemon) chooseBackend(ctx context.Context) error {
	config := d.steering.config(d.policy, d.helper.Name)
	why := "as before the handover"
	if d.backend = d.handed.Backend; d.backend == "" {
		var err error
		if d.backend, why, err = d.steering.choose(ctx, config); err != nil {
			return err
		}
	}
	d.log.Info("rules", "backend", string(d.backend), "why", why)
	obstacles, err := doctor.Obstacles(ctx, doctor.Subject{Config: config, Backend: d.backend, PolicyFile: d.policyFile})
	for _, o := range obstacles {
		d.log.Warn("rules", "warning", o.String(), "fix", o.Fix)
	}
	if err != nil {
		d.log.Warn("rules", "warning", "what else filters here is not known", "err", err)
	}
	return nil
}

// installAttempts bounds how often rules are tried whose helper somebody else may take away meanwhile, and define again: afterwards
// one cannot see whether it was that.
const installAttempts = 5

// rules are those that have to be in force now.
func (d *daemon) rules() rules.Rules {
	config := d.steering.config(d.policy, d.helper.Name)
	config.Draining, config.NoLabels = d.draining(), d.noLabels
	return d.backend.Rules(config)
}

// ensureRules puts the rules in force unless they are. To replace them may cost what waits in queues, anybody's: the kernel drops
// that when a chain with a hook goes, or a rule that gives out a helper.
func (d *daemon) ensureRules(ctx context.Context) error {
	if wanted := d.rules(); wanted.String() == d.inForce {
		if missing, err := rules.Present(ctx, wanted); err == nil && len(missing) == 0 {
			return nil
		}
	}
	return d.installRules(ctx)
}

// installRules puts the rules in force, with the helper that they name: 'rules --remove' takes it away as long as no rule names it,
// in another network namespace as well.
func (d *daemon) installRules(ctx context.Context) (err error) {
	wanted := d.rules()
	d.inForce = ""
	for range installAttempts {
		if d.helper.Own {
			if err := conntrack.RegisterOwnHelper(); err != nil {
				return err
			}
		}
		err = rules.Install(ctx, wanted)
		if err != nil && !d.noLabels {
			wanted, err = d.withoutLabels(ctx, err)
		}
		if err == nil {
			d.inForce = wanted.String()
		}
		if err == nil || !d.helper.Own {
			break
		}
	}
	return err
}

// withoutLabels tries the rules without labels, which are the only part of them that the rest can do without.
func (d *daemon) withoutLabels(ctx context.Context, why error) (rules.Rules, error) {
	d.noLabels = true
	wanted := d.rules()
	if err := rules.Install(ctx, wanted); err != nil {
		d.noLabels = false
		return wanted, why
	}
	d.log.Warn("rules", "warning", "the kernel has no conntrack labels (CONFIG_NF_CONNTRACK_LABELS, xt_connlabel): a restart without "+
		"a handover knows nothing of the sessions that go on", "err", why)
	return wanted, nil
}

// removeTimeout bounds the removal of the rules: a dozen programs run for it one after the other, on a machine that may be busy.
// It is shorter than the unit's TimeoutStopSec.
const removeTimeout = 20 * time.Second

// removeRules runs when everything else is over, so not in that context.
func (d *daemon) removeRules() {
	if !d.hasRules {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), removeTimeout)
	defer cancel()
	if err := rules.Remove(ctx); err != nil {
		d.log.Error("rules not removed; run 'ftpalg rules --remove'", "err", err)
	}
}

// watchEnds ends sessions with their conntrack entries. It says when it listens.
func (d *daemon) watchEnds(ctx context.Context, listening func()) error {
	return conntrack.WatchDestroy(ctx,
		func(e conntrack.Entry) {
			d.inspector.End(time.Now(), inspect.Key{Client: e.Orig.Src, Server: e.Orig.Dst}, e.ID)
		},
		func() {
			listening()
			d.inspector.Sweep(time.Now(), time.Now())
		})
}

func (d *daemon) tidy(ctx context.Context) error {
	expire, sweep := time.NewTicker(expireEvery), time.NewTicker(sweepEvery)
	defer expire.Stop()
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-expire.C:
			d.inspector.Expire(now)
			d.terminating.Expire(now)
			d.reporter.tell(now)
			if err := d.kernelAnswers(); err != nil {
				d.log.Error("the kernel's connection tracking does not answer", "err", err)
				continue
			}
			d.manager.alive(now, d.status())
		case now := <-sweep.C:
			d.inspector.Sweep(now, now.Add(-idleBefore))
		}
	}
}

// kernelAnswers asks for a connection that cannot be.
func (d *daemon) kernelAnswers() error {
	nobody := netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	if _, err := d.conntrack.Lookup(conntrack.Tuple{Src: nobody, Dst: nobody}); !errors.Is(err, conntrack.ErrNotFound) {
		return cmp.Or(err, errors.New("it knows a connection that cannot be"))
	}
	return nil
}

// status is what the service manager shows.
func (d *daemon) status() string {
	text := fmt.Sprintf("%d sessions inspected, %d terminated", d.inspector.Count(), d.terminating.Count())
	if n := d.reporter.faults.Load(); n > 0 {
		text += fmt.Sprintf(", %d ended by faults of ftpalg", n)
	}
	return text
}

// obey reads the policy again at SIGHUP, and certificates when they were renewed. A bad file leaves the old ones in force.
// At SIGUSR2 it starts a successor, and gives the link to it when it is ready. One that does not get ready changes nothing.
// One thing is done at a time: a SIGHUP that comes while a successor starts waits for who is there then.
func (d *daemon) obey(ctx context.Context, tasks *errgroup.Group) *link {
	renew, keep := time.NewTicker(renewEvery), time.NewTicker(keepEvery)
	defer renew.Stop()
	defer keep.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.usr2:
			l, err := startSuccessor(ctx)
			if err == nil {
				return l
			}
			if ctx.Err() == nil {
				d.log.Error("no handover; this process goes on", "err", err)
			}
		case <-d.hup:
			d.manager.reloading()
			if err := d.reload(ctx, tasks); err != nil {
				d.log.Error("policy not reloaded; the old one stays in force", "file", d.policyFile, "err", err)
			}
			d.manager.say("READY=1")
		case <-renew.C:
			d.renew()
		case <-keep.C:
			d.keepRules(ctx)
		}
	}
}

// chooseHelper settles what control connections carry from now on.
func (d *daemon) chooseHelper(nat bool) error {
	h, err := conntrack.DetectHelper(d.policy.Helper, nat)
	if err == nil {
		d.helper, d.nat = h, nat
	}
	return err
}

// followNAT chooses the helper again where NAT has come or gone since, as a firewall may be loaded after us. Connections
// that are there keep theirs.
func (d *daemon) followNAT(ctx context.Context) {
	translates, err := rules.NAT(ctx, d.policy)
	if err != nil || translates == d.nat {
		return // what cannot be read now can be the next time
	}
	before := d.helper
	if err := d.chooseHelper(translates); err != nil {
		d.log.Error("NAT has come or gone; the helper stays", "helper", before.Name, "err", err)
	}
	if d.helper != before {
		d.log.Info("helper", "helper", d.helper.Name, "before", before.Name, "nat", translates)
	}
}

// keepRules keeps the rules as they have to be: when somebody has taken them away, or has kept us from installing all of them,
// and when what they depend on has changed.
func (d *daemon) keepRules(ctx context.Context) {
	if d.noRules {
		return
	}
	d.followNAT(ctx)
	if wanted := d.rules(); wanted.String() == d.inForce {
		missing, err := rules.Present(ctx, wanted)
		if err != nil || len(missing) == 0 {
			return // what cannot be read now can be the next time
		}
		d.log.Warn("somebody has taken rules away; they are put back", "missing", len(missing), "first", missing[0])
	}
	if err := d.installRules(ctx); err != nil && ctx.Err() == nil {
		d.log.Error("rules not in place", "err", err)
	}
}

// restoreRules puts those of the policy in force back where a reload has left others behind. If that fails keepRules tries
// again.
func (d *daemon) restoreRules(ctx context.Context) error {
	if d.inForce != "" || d.noRules {
		return nil
	}
	if err := d.installRules(ctx); err != nil {
		return fmt.Errorf("put the old rules back: %w", err)
	}
	return nil
}

func (d *daemon) reload(ctx context.Context, tasks *errgroup.Group) error {
	p, err := loadPolicy(d.policyFile)
	if err != nil {
		return err
	}
	certs, err := cert.Load(p)
	if err != nil {
		return err
	}
	if p.FailOpen != d.policy.FailOpen || p.Helper != d.policy.Helper {
		return errors.New("'fail' and 'helper' are fixed while ftpalg runs: restart it to change them")
	}
	old := d.policy
	d.policy = p
	err = d.listenTransparently(ctx, tasks)
	if err == nil && !d.noRules {
		d.followNAT(ctx)
		err = d.ensureRules(ctx)
	}
	if err != nil {
		d.policy = old
		return errors.Join(fmt.Errorf("put the new rules in force: %w", err), d.restoreRules(ctx))
	}
	d.certs.Store(certs)
	d.inspector.SetPolicy(p)
	d.terminating.SetPolicy(p, certs)
	d.log.Info("policy reloaded", "file", d.policyFile)
	return nil
}
