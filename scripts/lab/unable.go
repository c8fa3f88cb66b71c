package lab

// inability is something that a client and a server cannot do with one another, gateway or not. Empty fields stand for
// everything.
type inability struct {
	server, client string
	protection     Protection
	level          string // C or P
	why            string
}

// inabilities is the list of them. TestInabilities tries each without a firewall.
var inabilities = []inability{
	{server: "vsftpd", protection: CCC, why: "vsftpd does not know CCC"},
	{server: "pure-ftpd", protection: AuthSSL, why: "Pure-FTPd answers AUTH SSL with 500"},
	{client: "lftp", protection: CCC, why: "lftp takes the close_notify behind 200 for the end of the connection, if it comes soon"},
	{server: "vsftpd", client: "fresh", why: "vsftpd wants data connections to resume the TLS session"},
	{server: "proftpd", client: "fresh", protection: Explicit, why: "ProFTPD wants data connections to resume the TLS session"},
	{server: "proftpd", client: "fresh", protection: AuthSSL, why: "ProFTPD wants data connections to resume the TLS session"},
	{server: "proftpd", client: "fresh", protection: Implicit, why: "ProFTPD wants data connections to resume the TLS session"},
}

// unable returns why client and server cannot do it, or nothing.
func (s Scenario) unable() string {
	for _, i := range inabilities {
		if i.covers(s) {
			return i.why
		}
	}
	return ""
}

func (i inability) covers(s Scenario) bool {
	return (i.server == "" || i.server == s.Server.Name) && (i.client == "" || i.client == s.Client.Name) &&
		(i.protection == "" || i.protection == s.Protection) && (i.level == "" || i.level == s.Level())
}
