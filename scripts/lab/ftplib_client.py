"""One download and one upload with Python's ftplib, for the lab.

Arguments: JSON with host, port, user, password, ca, protection, clear, mode, tls12, tls13,
reuse, trust, get, into, put, as, putfirst.
ftplib prints every command, because the lab checks that the mode and the protection were really used.
"""
import ftplib, json, socket, ssl, sys

job = json.loads(sys.argv[1])


class Modes:
    """ftplib takes the mode from the address family; here it is the job's."""

    def makepasv(self):
        if job["mode"] == "EPSV":
            return ftplib.parse229(self.sendcmd("EPSV"), self.sock.getpeername())
        self.trust_server_pasv_ipv4_address = job["trust"]
        return super().makepasv()

    def sendport(self, host, port):
        if job["mode"] == "EPRT":
            return self.sendeprt(host, port)
        return super().sendport(host, port)

    def ntransfercmd(self, cmd, rest=None):
        conn, size = super().ntransfercmd(cmd, rest)
        ours, theirs = self.sock.getpeername()[0], conn.getpeername()[0]
        if ours != theirs:
            raise OSError(f"data comes from {theirs}, not from {ours}")
        return conn, size


class Plain(Modes, ftplib.FTP):
    pass


class FTPS(ftplib.FTP_TLS):
    """Data connections may resume the control connection's session, which vsftpd and ProFTPD insist on."""

    def secure(self, sock, session=None):
        return self.context.wrap_socket(sock, server_hostname=self.host, session=session)

    def auth(self):
        answer = self.voidcmd("AUTH SSL" if job["protection"] == "auth-ssl" else "AUTH TLS")
        self.sock = self.secure(self.sock)
        self.file = self.sock.makefile("r", encoding=self.encoding)
        return answer

    def ccc(self):
        self.session = self.sock.session  # gone with the TLS
        return super().ccc()

    def ntransfercmd(self, cmd, rest=None):
        conn, size = ftplib.FTP.ntransfercmd(self, cmd, rest)
        if self._prot_p:
            session = self.session if job["protection"] == "ccc" else self.sock.session
            conn = self.secure(conn, session if job["reuse"] else None)
        return conn, size


class TLS(Modes, FTPS):
    pass


class Implicit(TLS):
    """TLS comes before the greeting (draft-murray-auth-ftp-ssl, port 990)."""

    def connect(self, host, port, timeout):
        self.host, self.port, self.timeout = host, port, timeout
        raw = socket.create_connection((host, port), timeout)
        self.af = raw.family
        self.sock = self.secure(raw)
        self.file = self.sock.makefile("r", encoding=self.encoding)
        self.welcome = self.getresp()
        return self.welcome


def connect():
    if job["protection"] == "plain":
        ftp = Plain()
    else:
        context = ssl.create_default_context(cafile=job["ca"])
        if job["tls12"]:
            context.maximum_version = ssl.TLSVersion.TLSv1_2
        if job["tls13"]:
            context.minimum_version = ssl.TLSVersion.TLSv1_3
        ftp = (Implicit if job["protection"] == "implicit" else TLS)(context=context)
    ftp.set_debuglevel(1)
    ftp.connect(job["host"], job["port"], timeout=20)
    ftp.login(job["user"], job["password"])
    if job["protection"] != "plain":
        print("tls:", ftp.sock.version())
        ftp.voidcmd("PBSZ 0")
        ftp.prot_c() if job["clear"] else ftp.prot_p()
        if job["protection"] == "ccc":
            ftp.ccc()
    ftp.set_pasv(job["mode"] in ("PASV", "EPSV"))
    return ftp


def download(ftp):
    with open(job["into"], "wb") as f:
        ftp.retrbinary("RETR " + job["get"], f.write)


def upload(ftp):
    with open(job["put"], "rb") as f:
        ftp.storbinary("STOR " + job["as"], f)


ftp = connect()
for transfer in (upload, download) if job["putfirst"] else (download, upload):
    transfer(ftp)
ftp.quit()
