package main

import "strings"

// The states that probes are sent in.
const (
	stateGreeted  = "greeted"  // the greeting was read
	stateNamed    = "named"    // USER was answered
	stateIn       = "in"       // logged in, PASV answered
	stateTransfer = "transfer" // RETR was answered by 150, and its data is not read; in ASCII mode
	stateBinary   = "binary"   // the same in binary mode, when ProFTPD does not look at commands
	stateAborted  = "aborted"  // then ABOR, and its replies were read
)

// longLine is over every server's limit for a line.
const longLine = 6000

// probe is what is sent.
type probe struct{ name, send string }

// probes are sent in every state. $HOME is the account's directory, which has pub, secret/key, deep/er, and big.
var probes = []probe{
	{"USER", "USER lab\r\n"}, {"PASS", "PASS lab-Passw0rd\r\n"}, {"PASS wrong", "PASS wrong\r\n"}, {"ACCT", "ACCT a\r\n"},
	{"AUTH TLS", "AUTH TLS\r\n"}, {"AUTH SSL", "AUTH SSL\r\n"}, {"AUTH GSSAPI", "AUTH GSSAPI\r\n"},
	{"PBSZ", "PBSZ 0\r\n"}, {"PROT P", "PROT P\r\n"}, {"PROT C", "PROT C\r\n"}, {"CCC", "CCC\r\n"}, {"REIN", "REIN\r\n"},
	{"NOOP", "NOOP\r\n"}, {"SYST", "SYST\r\n"}, {"FEAT", "FEAT\r\n"}, {"HELP", "HELP\r\n"}, {"STAT", "STAT\r\n"}, {"STAT path", "STAT $HOME/pub\r\n"},
	{"TYPE I", "TYPE I\r\n"}, {"MODE S", "MODE S\r\n"}, {"MODE Z", "MODE Z\r\n"}, {"STRU F", "STRU F\r\n"}, {"OPTS", "OPTS UTF8 ON\r\n"},
	{"PWD", "PWD\r\n"}, {"CWD", "CWD $HOME/pub\r\n"}, {"CWD relative", "CWD pub\r\n"}, {"CWD nowhere", "CWD $HOME/pub/nowhere\r\n"}, {"CDUP", "CDUP\r\n"},
	{"PASV", "PASV\r\n"}, {"EPSV", "EPSV\r\n"}, {"EPSV ALL", "EPSV ALL\r\n"}, {"PORT", "PORT 192,0,2,2,156,64\r\n"}, {"EPRT", "EPRT |1|192.0.2.2|40000|\r\n"},
	{"PORT foreign", "PORT 192,0,2,3,156,64\r\n"},
	{"RETR", "RETR $HOME/secret/key\r\n"}, {"RETR nowhere", "RETR $HOME/nowhere\r\n"}, {"STOR", "STOR $HOME/pub/new\r\n"},
	{"LIST", "LIST\r\n"}, {"NLST", "NLST $HOME/pub\r\n"}, {"MLSD", "MLSD\r\n"}, {"LIST glued", "LIST -a$HOME/secret\r\n"},
	{"SIZE", "SIZE $HOME/secret/key\r\n"}, {"MDTM", "MDTM $HOME/secret/key\r\n"}, {"DELE nowhere", "DELE $HOME/nowhere\r\n"},
	{"MKD exists", "MKD $HOME/pub\r\n"}, {"RMD nowhere", "RMD $HOME/nowhere\r\n"}, {"RNFR", "RNFR $HOME/secret/key\r\n"}, {"RNTO", "RNTO $HOME/x\r\n"},
	{"REST", "REST 10\r\n"}, {"ALLO", "ALLO 10\r\n"}, {"SITE HELP", "SITE HELP\r\n"}, {"ABOR", "ABOR\r\n"}, {"QUIT", "QUIT\r\n"},
	{"unknown", "XXXX\r\n"}, {"blank", "\r\n"}, {"blanks", "  \r\n"}, {"bare LF", "NOOP\n"}, {"two bare LF", "\n\n"},
	{"IAC NOP", "\xff\xf1\r\n"}, {"IAC IP DM", "\xff\xf4\xff\xf2\r\n"}, {"IAC IP DM ABOR", "\xff\xf4\xff\xf2ABOR\r\n"},
	{"IAC WILL", "\xff\xfbx\r\n"}, {"CWD IAC WILL", "CWD $HOME/pu\xff\xfbxb\r\n"}, {"CWD IAC NOP", "CWD $HOME/pu\xff\xf1b\r\n"},
	{"CWD IAC IAC", "CWD $HOME/pu\xff\xffb\r\n"}, {"CWD IAC hides dots", "CWD $HOME/deep/e\xff\xfb/../../pub\r\n"},
	{"NUL", "NO\x00OP\r\n"}, {"stray CR", "NO\rOP\r\n"}, {"space before", " NOOP\r\n"}, {"tab", "CWD\t$HOME/pub\r\n"},
	{"long", strings.Repeat("A", longLine) + "\r\n"}, {"long CWD", "CWD " + strings.Repeat("A", longLine) + "\r\n"},
	{"HTTP", "POST / HTTP/1.1\r\n"},
	{"two NOOP", "NOOP\r\nNOOP\r\n"}, {"NOOP and CWD", "NOOP\r\nCWD $HOME/pub\r\n"}, {"two CWD", "CWD $HOME/nowhere\r\nCWD $HOME/pub\r\n"},
	{"blank and CWD", "\r\nCWD $HOME/pub\r\n"}, {"IAC NOP and CWD", "\xff\xf1\r\nCWD $HOME/pub\r\n"}, {"long and CWD", strings.Repeat("A", longLine) + "\r\nCWD $HOME/nowhere\r\n"},
	{"ABOR and NOOP", "ABOR\r\nNOOP\r\n"}, {"AUTH and PWD", "AUTH TLS\r\nPWD\r\n"},
}
