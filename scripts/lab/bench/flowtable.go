package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"ftpalg/scripts/lab"
)

// flowtableFlags let ftpalg's data connections into a flowtable.
var flowtableFlags = []string{"--flowtable", string(lab.Client) + "," + string(lab.Server)}

// errNoFlowtable says that this kernel cannot do what the flowtable is measured with.
var errNoFlowtable = errors.New("the kernel does not take nft's rules with a flowtable")

// fastRules is a router without a firewall that has all established connections in a flowtable: the most that one can bring.
const fastRules = `table inet fast {
	flowtable f { hook ingress priority filter; devices = { "client", "server" }; }
	chain forward { type filter hook forward priority filter; policy accept; ct state established flow add @f; }
}`

func (g *gateway) fast(ctx context.Context, p programs) error {
	if _, err := g.Run(ctx, lab.Gateway, "nft", fastRules); err != nil {
		return fmt.Errorf("%w: %w", errNoFlowtable, err)
	}
	return g.open(ctx, p)
}

// nftRules is ftpalg with nft's rules.
func (g *gateway) nftRules(flags ...string) func(context.Context, programs) error {
	flags = append([]string{"--backend", "nft"}, flags...)
	return func(ctx context.Context, p programs) error {
		if err := g.open(ctx, p); err != nil { // nft's table decides
			return err
		}
		file := g.Path("policy.yaml")
		if err := os.WriteFile(file, []byte(policyText), 0o600); err != nil {
			return err
		}
		try := append([]string{"-c", `"$@" | nft -c -f -`, "sh", p.ftpalg, "rules", "--policy", file}, flags...)
		if _, err := g.Run(ctx, lab.Gateway, "sh", try...); err != nil {
			return fmt.Errorf("%w: %w", errNoFlowtable, err)
		}
		return g.daemon(ctx, p, policyText, flags...)
	}
}

// reportFlowtable measures data connections that go past the rules, where the kernel has flowtables: what one saves it saves
// for each packet, and how many there are is for the links to say.
func (b *bench) reportFlowtable(ctx context.Context) error {
	if err := b.build(ctx, flowtableWays); err != nil {
		if errors.Is(err, errNoFlowtable) {
			b.table.note("flowtable: not measured, as this kernel has none (or no queue statement of nft's); scripts/kernel measures it on Debian's")
			return nil
		}
		return err
	}
	gateways := b.those(flowtableWays...)
	for _, g := range gateways {
		if err := g.checkOffload(ctx, g.way == fast || g.way == offloaded); err != nil {
			return fmt.Errorf("%s: %w", wayNames[g.way], err)
		}
	}
	for _, c := range []struct {
		links     string
		segments  int // that the sender may put into one packet
		mebibytes int
	}{{"frames of 1500 bytes", 1, b.flowtableMebibytes}, {"aggregated", 65535, 4 * b.flowtableMebibytes}} {
		if err := segmented(ctx, gateways, c.segments); err != nil {
			return err
		}
		if err := b.compareFlowtable(ctx, gateways, c.links, c.mebibytes); err != nil {
			return fmt.Errorf("%s: %w", c.links, err)
		}
	}
	b.table.note("flowtable: all hosts share this machine's processors, so that a packet takes as long as what it costs sender, gateway and receiver (in a machine of scripts/kernel -i a nanosecond is an instruction); frames of 1500 bytes are what network cards pass on that aggregate nothing: every link of the lab has gso_max_segs 1, on all gateways alike; the sender puts up to 64 KiB into an aggregated packet, which all of them forward as one; conntrack called the flowtables' connections [OFFLOAD] while they ran, and no others")
	return nil
}

// compareFlowtable measures transfers over links as they are set.
func (b *bench) compareFlowtable(ctx context.Context, gateways []*gateway, links string, mebibytes int) error {
	buf := make([]byte, 256<<10)
	var packets [ways]float64
	var took series // µs for a packet
	r, err := pace(ctx, gateways, b.flowtableRounds, float64(mebibytes), func(g *gateway) error {
		before, err := g.forwarded(ctx)
		if err != nil {
			return err
		}
		start := time.Now()
		if err := g.bulk(plain, mebibytes, buf); err != nil {
			return err
		}
		elapsed := time.Since(start)
		after, err := g.forwarded(ctx)
		packets[g.way] += after - before
		took.add(g.way, micros(elapsed)/(after-before))
		return err
	})
	if err != nil {
		return err
	}
	over := func(way, base int) string { return withSpread(r.ratios(overBest(way, base))) }
	b.table.add(row{
		measure: fmt.Sprintf("flowtable: data, %s, MiB/s", links), cells: r.medians("%.1f"),
		ratio:  over(offloaded, routed) + " of routed",
		target: "flowtable / routed >= 1.00", met: verdict(median(r.ratios(overBest(offloaded, routed))) >= 1),
	})
	b.table.add(row{measure: fmt.Sprintf("flowtable: µs a packet, %s", links), cells: took.medians("%.2f")})
	b.table.note("flowtable, %s: %.0f bytes a packet from the server; ftpalg's over ftpalg without %s, over the kernel helper's firewall %s; ftpalg without over routed %s; routed with a flowtable over routed %s",
		links, float64(b.flowtableRounds*mebibytes<<20)/packets[routed], over(offloaded, nftRules), over(offloaded, kernelHelper), over(nftRules, routed), over(fast, routed))
	return nil
}

// segmented sets how many segments one packet may hold that leaves a host or the gateway.
func segmented(ctx context.Context, gateways []*gateway, segments int) error {
	var errs []error
	for _, g := range gateways {
		for _, link := range []struct {
			host   lab.Host
			device string
		}{{lab.Client, "eth0"}, {lab.Server, "eth0"}, {lab.Gateway, string(lab.Client)}, {lab.Gateway, string(lab.Server)}} {
			_, err := g.Run(ctx, link.host, "ip", "link", "set", link.device, "gso_max_segs", fmt.Sprint(segments))
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// forwarded is how many packets the gateway has had from the server.
func (g *gateway) forwarded(ctx context.Context) (float64, error) {
	text, err := g.Run(ctx, lab.Gateway, "cat", "/proc/net/dev")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(text) {
		name, counts, _ := strings.Cut(strings.TrimSpace(line), ":")
		var bytes, packets float64
		if name != string(lab.Server) {
			continue
		}
		if _, err := fmt.Sscan(counts, &bytes, &packets); err != nil {
			return 0, fmt.Errorf("/proc/net/dev: %q: %w", line, err)
		}
		return packets, nil
	}
	return 0, fmt.Errorf("/proc/net/dev has no interface %q", lab.Server)
}

// checkOffload sees whether a data connection is in a flowtable while it runs.
func (g *gateway) checkOffload(ctx context.Context, want bool) error {
	return g.InNS(g.host, func() error {
		c, err := g.login(plain)
		if err != nil {
			return err
		}
		defer c.conn.Close()
		const size = 1 << 20
		data, err := c.open(fmt.Sprint(size))
		if err != nil {
			return err
		}
		defer data.Close()
		if _, err := data.Read(make([]byte, 1)); err != nil {
			return err
		}
		listed, err := g.Run(ctx, lab.Gateway, "conntrack", "-L")
		if err != nil {
			return err
		}
		if got := strings.Contains(listed, "[OFFLOAD]"); got != want {
			return fmt.Errorf("a data connection is in a flowtable: %v, want %v:\n%s", got, want, listed)
		}
		return nil
	})
}
