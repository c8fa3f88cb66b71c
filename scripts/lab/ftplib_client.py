"""One upload and one download with Python's ftplib, for the lab.

Arguments: JSON with host, port, user, password, ca, protection, mode, tls12, get, into, put, as.
ftplib prints every command, because the lab checks that the mode was really used.
"""
import ftplib, json, socket, ssl, sys

job = json.loads(sys.argv[1])


class Modes:
    """ftplib takes the mode from the address family; here it is the job's."""

    def makepasv(self):
        if job["mode"] == "EPSV":
            return ftplib.parse229(self.sendcmd("EPSV"), self.sock.getpeername())
        return super().makepasv()

    def sendport(self, host, port):
        if job["mode"] == "EPRT":
            return self.sendeprt(host, port)
        return super().sendport(host, port)


class Plain(Modes, ftplib.FTP):
    pass


class TLS(Modes, ftplib.FTP_TLS):
    """Data connections resume the control connection's session, which vsftpd and ProFTPD insist on."""

    def ntransfercmd(self, cmd, rest=None):
        conn, size = ftplib.FTP.ntransfercmd(self, cmd, rest)
        if self._prot_p:
            conn = self.context.wrap_socket(conn, server_hostname=self.host, session=self.sock.session)
        return conn, size


class Implicit(TLS):
    """TLS comes before the greeting (draft-murray-auth-ftp-ssl, port 990)."""

    def connect(self, host, port, timeout):
        self.host, self.port, self.timeout = host, port, timeout
        raw = socket.create_connection((host, port), timeout)
        self.af = raw.family
        self.sock = self.context.wrap_socket(raw, server_hostname=host)
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
        ftp = (Implicit if job["protection"] == "implicit" else TLS)(context=context)
    ftp.set_debuglevel(1)
    ftp.connect(job["host"], job["port"], timeout=20)
    ftp.login(job["user"], job["password"])
    if job["protection"] != "plain":
        print("tls:", ftp.sock.version())
        ftp.prot_p()
    ftp.set_pasv(job["mode"] in ("PASV", "EPSV"))
    return ftp


ftp = connect()
with open(job["into"], "wb") as f:
    ftp.retrbinary("RETR " + job["get"], f.write)
with open(job["put"], "rb") as f:
    ftp.storbinary("STOR " + job["as"], f)
ftp.quit()
