package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// newMan prints the manual pages, which are made of what the program itself has: its command line, and the reference
// policy. It is for whoever packages ftpalg.
func newMan() *cobra.Command {
	return &cobra.Command{
		Use:    "man [REFERENCE-POLICY]",
		Short:  "Print ftpalg(8), or ftpalg-policy(5) from the reference policy, as a manual page",
		Args:   cobra.MaximumNArgs(1),
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				_, err := io.WriteString(cmd.OutOrStdout(), commandPage(cmd.Root()))
				return err
			}
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			page, err := policyPage(f)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			_, err = io.WriteString(cmd.OutOrStdout(), page)
			return err
		},
	}
}

// page is a manual page in man(7)'s macros.
type page struct{ strings.Builder }

func newPage(name string, section int, short string) *page {
	p := &page{}
	fmt.Fprintf(p, ".TH %s %d \"\" \"ftpalg %s\"\n.SH NAME\n%s \\- %s\n", strings.ToUpper(escape(name)), section, version, escape(name), escape(short))
	return p
}

// escape keeps text from being read as roff.
func escape(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "→", `\(->`, "…", "...").Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}

func (p *page) section(title string) { fmt.Fprintf(p, ".SH %s\n", title) }

func (p *page) text(s string) { fmt.Fprintf(p, "%s\n", escape(s)) }

// item begins an entry of a list: its tag, with what it takes.
func (p *page) item(tag, argument string) {
	fmt.Fprintf(p, ".TP\n\\fB%s\\fR", escape(tag))
	if argument != "" {
		fmt.Fprintf(p, " \\fI%s\\fR", escape(argument))
	}
	p.WriteString("\n")
}

// commandPage is ftpalg(8).
func commandPage(root *cobra.Command) string {
	p := newPage("ftpalg", 8, root.Short)
	p.section("SYNOPSIS")
	p.WriteString(".B ftpalg\n.I COMMAND\n.RI [ OPTION ]...\n")
	p.section("DESCRIPTION")
	p.text("ftpalg lets FTP and FTPS through a default-drop Linux gateway by opening exactly the data ports that are needed, " +
		"for exactly the two hosts that need them, for as long as they need them, whether or not the control connection is encrypted.")
	p.section("COMMANDS")
	for _, c := range root.Commands() {
		if c.IsAvailableCommand() && c.Name() != "help" && c.Name() != "completion" {
			p.command(c)
		}
	}
	for _, s := range manSections {
		p.section(s.title)
		for _, e := range s.entries {
			p.item(e[0], "")
			p.text(e[1])
		}
	}
	p.reasons()
	p.section("SEE ALSO")
	p.WriteString(".BR ftpalg\\-policy (5),\n.BR iptables (8),\n.BR systemd.service (5)\n")
	return p.String()
}

func (p *page) command(c *cobra.Command) {
	fmt.Fprintf(p, ".SS \"ftpalg %s\"\n", escape(c.Use))
	text := c.Long
	if text == "" {
		text = c.Short + "."
	}
	p.text(text)
	c.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" {
			return
		}
		argument, usage := pflag.UnquoteUsage(f)
		p.item("--"+f.Name, argument)
		if f.DefValue != "" && f.DefValue != "false" {
			usage += " (default " + f.DefValue + ")"
		}
		p.text(usage)
	})
}

// manSections are what the command line does not know of itself.
var manSections = []struct {
	title   string
	entries [][2]string
}{
	{"SIGNALS", [][2]string{
		{"SIGHUP", "run reads the policy and the certificates again. If anything is wrong the old ones stay in force."},
		{"SIGTERM, SIGINT", "run ends its terminated sessions, removes its rules and ends. Inspected sessions go on when it is started again."},
		{"SIGUSR2", "run starts the program from its file as it is now, with the same arguments. When the new process is ready it takes " +
			"the queues, listeners and rules. The old one keeps the terminated sessions that it has until they are over, for " +
			"--drain-timeout at most, and then ends. If the new process does not get ready nothing changes. Under systemd: " +
			"systemctl kill --kill-whom=main -s USR2 ftpalg. (What the unit itself sets takes effect at a restart only.)"},
	}},
	{"SESSIONS", [][2]string{
		{"Begun", "A session begins with its connection: the server's SYN/ACK passes the queue, and the session takes nothing over from an " +
			"earlier one between the same ports. A control connection is new by its SYN alone. What conntrack would pick up in the " +
			"middle is dropped, on either side, so a session whose entry is gone is over: after conntrack -F, after a firewall that " +
			"flushes the table, and after nf_conntrack_tcp_timeout_established (five days) of silence. Its client connects again."},
		{"After a restart", "(kill -9, or a stop and a start.) Inspected sessions go on. Whether one is in TLS is kept in the label of its " +
			"conntrack entry, 16 bytes that are there as long as the entry. What else was said " +
			" is not known any more: the working directory stays unknown to path rules, so that relative names are denied. " +
			"Without a label (nobody had logged in, or the kernel has none, or ftpalg was not there when the session began) PORT and " +
			"passive replies open nothing until the server has shown that somebody is logged in, the first bytes decide nothing where " +
			"the rule restricts anything, and where it has users or require the session is reset, with session-unknown."},
		{"After a handover", "(SIGUSR2.) Sessions go on with all that is known of them."},
		{"Replicated entries", "A connection whose entry another gateway's conntrackd has put into the table is as after a restart: its SYN/ACK " +
			"passed elsewhere."},
		{"Terminated", "Terminated sessions end with the process that has them. One whose conntrack entry is replaced by another ends at " +
			"its next data connection."},
	}},
	{"THE GATEWAY'S OWN FTP", [][2]string{
		{"Not inspected", "ftpalg is about what the gateway forwards: FTP of the gateway itself is not inspected. Of a client on the gateway it " +
			"reads only the replies of listed servers, and lets them through unfiltered where an inspect rule names the gateway's address; where none " +
			"does they are blanked. A server on the gateway is none of ftpalg's, and must not be listed."},
	}},
	{"COMMANDS AND REPLIES", [][2]string{
		{"In step", "Under a rule with commands, users, transfers, files or require an inspected session goes in step: the client's next " +
			"command waits in the queue until the last one has its final reply. A client that sends several commands at once gets " +
			"the same replies, and waits a round trip for each. Rules without these keys make nobody wait. Terminated sessions " +
			"always go in step."},
		{"During a transfer", "ABOR, STAT, QUIT and NOOP go on at once. In an inspected session any other command waits for 4 seconds; then it " +
			"goes on, and the working directory is unknown until the server tells it. In a terminated one it waits until the transfer " +
			"is over or, if that was given up, for 2 seconds."},
		{"Replies that do not come", "Some servers leave NOOP, ABOR, STAT, QUIT and blank lines without a reply: after 4 seconds the next " +
			"command goes on. For all others it waits 30 seconds. Then, and after a reply that belongs to no command, the session is out " +
			"of step until it ends: relative paths are denied (path-unknown), AUTH is refused (out-of-step), and nobody counts as logged " +
			"in by a reply that another command may have."},
		{"Lines that are no replies", "A server's lines without a code, as before some greetings and in some replies to FEAT, are passed on and " +
			"logged (stray-line). They open nothing. The line of another protocol, and more than 1000 in a row, end the session (not-ftp)."},
		{"Before a login", "PORT, EPRT and the replies to PASV and EPSV open nothing (not-logged-in). Another protocol's first line, " +
			"or more than 5 lines that are no commands, end the session."},
		{"Credits", "Where TLS stays closed, each command and its reply let the client open one port of the server's passive range within " +
			"credit-lifetime. The first two exchanges, which a login takes, earn nothing. There is one credit at a time, and they can " +
			"be spent 20 at once and then 50 a second."},
	}},
	{"FAULTS", [][2]string{
		{"a fault of ftpalg ended this session", "A mistake in the program ends the session that it happens in, and no other. The line at " +
			"level ERROR has the stack, and faults= counts them since the start, as systemctl status does. Please report it."},
	}},
	{"EXIT STATUS", [][2]string{
		{"0", "All is well."},
		{"1", "The thing checked or run failed."},
		{"2", "Wrong usage."},
	}},
	{"FILES", [][2]string{
		{"/etc/ftpalg/policy.yaml", "The policy of the service. Keys that it names must be readable by the user ftpalg alone: " +
			"install -o ftpalg -m 0400."},
		{"/etc/default/ftpalg", "Options of the service, in FTPALG_OPTIONS."},
		{defaultSocket, "Where the running daemon answers sessions and pinholes."},
	}},
	{"ENVIRONMENT", [][2]string{
		{"NOTIFY_SOCKET, WATCHDOG_USEC", "A service manager that waits for messages, as in sd_notify(3)."},
	}},
}

var policyKey = regexp.MustCompile(`^( *)(- )?([a-z0-9-]+):(?: (.*))?$`)

// policyPage is ftpalg-policy(5): the reference policy's keys in their order, each with the comment above it.
func policyPage(reference io.Reader) (string, error) {
	p := newPage("ftpalg-policy", 5, "the policy file of ftpalg")
	p.section("DESCRIPTION")
	lines := bufio.NewScanner(reference)
	var comment []string
	depth, begun := []int{0}, false
	for number := 1; lines.Scan(); number++ {
		line := lines.Text()
		body, isComment := strings.CutPrefix(strings.TrimLeft(line, " "), "#")
		switch key := policyKey.FindStringSubmatch(line); {
		case isComment:
			comment = append(comment, strings.TrimPrefix(body, " "))
		case line == "":
			p.comment(comment, begun)
			comment = nil
		case key == nil:
			return "", fmt.Errorf("line %d: %q is neither a comment nor a key", number, line)
		default:
			if !begun {
				p.section("KEYS")
				p.text("Each with its default or, where it is required, an example.")
				begun = true
			}
			depth = p.indent(depth, len(key[1])+len(key[2]))
			p.item(key[3]+":", key[4])
			p.comment(comment, false)
			comment = nil
		}
	}
	p.indent(depth, 0)
	p.section("SEE ALSO")
	p.WriteString(".BR ftpalg (8)\n")
	return p.String(), lines.Err()
}

// indent goes to the depth of a key, given the depths of those around it.
func (p *page) indent(depth []int, to int) []int {
	for to < depth[len(depth)-1] {
		p.WriteString(".RE\n")
		depth = depth[:len(depth)-1]
	}
	if to > depth[len(depth)-1] {
		p.WriteString(".RS\n")
		depth = append(depth, to)
	}
	return depth
}

// comment prints a comment. Its indented lines are examples and stay as they are.
func (p *page) comment(lines []string, paragraph bool) {
	if paragraph && len(lines) > 0 {
		p.WriteString(".PP\n")
	}
	example := false
	for _, line := range lines {
		if indented := strings.HasPrefix(line, " "); indented != example {
			example = indented
			p.WriteString(map[bool]string{true: ".nf\n", false: ".fi\n"}[example])
		}
		if line == "" {
			p.WriteString(".PP\n")
			continue
		}
		p.text(line)
	}
	if example {
		p.WriteString(".fi\n")
	}
}
