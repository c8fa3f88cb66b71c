"""One listing, one download and one upload with FileZilla, for the lab, on a display that nobody sees.

Arguments: JSON with host, port, user, password, ca, protection, mode, tls12, limit, dir, get, into, put, as,
putfirst.
FileZilla takes what it has to do from its queue, starts when Ctrl+P is pressed, and ends when the queue is empty. Its log is
printed, because the lab checks that the mode and the protection were really used. A dialog is a failure, whatever it says: all
that is asked of an honest server's user has been answered in the configuration.
"""
import json, os, re, shutil, signal, sqlite3, ssl, subprocess, sys, time
from xml.sax.saxutils import escape, quoteattr

job = json.loads(sys.argv[1])
home = os.environ["HOME"]
config = os.path.join(home, ".config", "filezilla")
log = os.path.join(config, "log")

SETTINGS = {
    "Use Pasv mode": int(job["mode"] in ("PASV", "EPSV")),
    "Allow transfermode fallback": 0,  # a mode that fails is not to be hidden by another
    "Number of Transfers": 1,  # one control connection
    "Reconnect count": 0,
    "Timeout": 20,
    "Update Check": 0,
    "Logging Debug Level": 4,  # with FZDEBUG: what happens in TLS
    "Greeting version": "999.0.0",  # no welcome
    "Queue completion action": 3,  # close FileZilla
    "Minimum TLS Version": 2 if job["tls12"] else 3,  # 1.2, 1.3
    "Logging file": log,
}
PROTOCOLS = {"plain": 6, "explicit": 4, "implicit": 3}  # 4 is AUTH TLS or nothing
NORMAL_LOGON = 1
DOWNLOAD = 0x10

# The queue as FileZilla 3.63 stores it.
QUEUE = """
PRAGMA encoding = "UTF-16le";
PRAGMA user_version = 7;
CREATE TABLE servers (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, host TEXT NOT NULL, port INTEGER, user TEXT, password TEXT,
    account TEXT, keyfile TEXT, protocol INTEGER, type INTEGER, logontype INTEGER, timezone_offset INTEGER, transfer_mode TEXT,
    max_connections INTEGER, encoding TEXT, bypass_proxy INTEGER, post_login_commands TEXT, name TEXT, parameters TEXT,
    site_path TEXT DEFAULT NULL);
CREATE TABLE files (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, server INTEGER NOT NULL, source_file TEXT, target_file TEXT,
    local_path INTEGER, remote_path INTEGER, size INTEGER, error_count INTEGER, priority INTEGER, flags INTEGER,
    default_exists_action INTEGER, extra_flags TEXT);
CREATE INDEX server_index ON files (server);
CREATE TABLE local_paths (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, path TEXT NOT NULL);
CREATE TABLE remote_paths (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, path TEXT NOT NULL);
"""


def write(name, content):
    with open(os.path.join(config, name), "w") as f:
        f.write(f'<?xml version="1.0"?><FileZilla3>{content}</FileZilla3>')


def configure():
    shutil.rmtree(config, ignore_errors=True)
    os.makedirs(config)
    settings = "".join(f"<Setting name={quoteattr(k)}>{escape(str(v))}</Setting>" for k, v in SETTINGS.items())
    write("filezilla.xml", f"<Settings>{settings}</Settings>")
    write("trustedcerts.xml", trust())
    queue()
    if job["tls12"]:  # FileZilla has no setting for the newest version, GnuTLS has
        path = os.path.join(config, "gnutls")
        with open(path, "w") as f:
            f.write("[overrides]\ndisabled-version = tls1.3\n")
        os.environ["GNUTLS_SYSTEM_PRIORITY_FILE"] = path


def trust():
    """The answers to "this certificate is unknown" and "plain FTP is insecure"."""
    if job["protection"] == "plain":
        return f'<InsecureHosts><Host Port="{job["port"]}">{job["host"]}</Host></InsecureHosts>'
    with open(job["ca"]) as f:
        certificate = ssl.PEM_cert_to_DER_cert(f.read()).hex()
    now, day = int(time.time()), 24 * 3600
    return (f"<TrustedCerts><Certificate><Data>{certificate}</Data><ActivationTime>{now - day}</ActivationTime>"
            f"<ExpirationTime>{now + day}</ExpirationTime><Host>{job['host']}</Host><Port>{job['port']}</Port>"
            "<TrustSANs>0</TrustSANs></Certificate></TrustedCerts>")


def queue():
    db = sqlite3.connect(os.path.join(config, "queue.sqlite3"))
    db.executescript(QUEUE)
    db.execute("INSERT INTO servers (id, host, port, user, password, protocol, type, logontype, timezone_offset, transfer_mode,"
               " max_connections, encoding) VALUES (1, ?, ?, ?, ?, ?, 0, ?, 0, 'default', 1, 'Auto')",
               (job["host"], job["port"], job["user"], job["password"], PROTOCOLS[job["protection"]], NORMAL_LOGON))
    names = job["dir"].strip("/").split("/")
    db.execute("INSERT INTO remote_paths VALUES (1, ?)", ("1 0 " + " ".join(f"{len(n)} {n}" for n in names),))
    into, put = os.path.split(job["into"]), os.path.split(job["put"])
    transfers = (1, into[0], job["get"], into[1], DOWNLOAD), (2, put[0], put[1], job["as"], 0)
    for n, local, source, target, flags in sorted(transfers, reverse=job["putfirst"]):
        db.execute("INSERT INTO local_paths VALUES (?, ?)", (n, local + "/"))
        db.execute("INSERT INTO files (server, source_file, target_file, local_path, remote_path, priority, flags)"
                   " VALUES (1, ?, ?, ?, 1, 2, ?)", (source, target, n, flags))
    db.commit()
    db.close()


def xdotool(*arguments):
    return subprocess.run(("xdotool",) + arguments, capture_output=True, text=True).stdout


def start_display():
    read, write = os.pipe()
    server = subprocess.Popen(("Xvfb", "-displayfd", str(write), "-nolisten", "tcp", "-screen", "0", "1024x768x24"), pass_fds=(write,),
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(write)
    with os.fdopen(read) as f:
        os.environ["DISPLAY"] = ":" + f.readline().strip()
    return server


def start_filezilla():
    os.environ.update(FZDEBUG="1", GDK_BACKEND="x11", NO_AT_BRIDGE="1", LC_ALL="C.UTF-8", DBUS_SESSION_BUS_ADDRESS="disabled:")
    return subprocess.Popen("filezilla", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def process_queue():
    """Presses Ctrl+P, once: it would stop what it has started. The menu that listens to it is there before the window."""
    window = xdotool("search", "--sync", "--onlyvisible", "--name", "^FileZilla$").split()[0]
    xdotool("windowfocus", "--sync", window, "key", "ctrl+p")


def transferred():
    """How many files have been transferred, as FileZilla has it."""
    if not os.path.exists(log):
        return 0
    with open(log, errors="replace") as f:
        return f.read().count("File transfer successful")


# How long FileZilla may take to end when all is done. It has been seen to hang there.
END = 10


def watch(filezilla):
    """Returns when FileZilla has ended, or has had its time to, and fails as soon as it asks something."""
    done = None
    while True:
        try:
            return filezilla.wait(0.2)
        except subprocess.TimeoutExpired:
            pass
        if done is None and transferred() == 2:
            done = time.monotonic()
        if done is not None and time.monotonic() - done > END:
            return None
        asked = [t for t in xdotool("search", "--onlyvisible", "--name", ".", "getwindowname", "%@").splitlines() if t != "FileZilla"]
        if asked:
            sys.exit("FileZilla asks: " + ", ".join(asked))


def judge(text):
    """Fails on whatever went wrong, the retry notwithstanding, and on a data connection that resumed no TLS session."""
    errors = re.findall(r"Error:\s+(.*)", text)
    if errors:
        sys.exit("FileZilla says: " + ", ".join(errors))
    data = len(re.findall(r"Command:\s+(?:LIST|MLSD|RETR|STOR)\b", text))
    resumed = text.count("TLS Session resumed")
    if job["protection"] != "plain" and resumed != data:
        sys.exit(f"{resumed} of {data} data connections resumed the control connection's TLS session")


def give_up(*_):
    sys.exit(f"FileZilla is not done after {job['limit']} s")


signal.signal(signal.SIGALRM, give_up)
signal.alarm(job["limit"])
configure()
display, filezilla = start_display(), None
try:
    filezilla = start_filezilla()
    process_queue()
    watch(filezilla)
finally:
    if filezilla:
        filezilla.kill()
    display.terminate()  # it takes its socket and its lock away
    text = ""
    if os.path.exists(log):
        with open(log) as f:
            text = f.read()
    print(re.sub(r"(?m)^.* Trace: .*\n", "", text))
    versions = re.findall(r"Protocol: TLS(\S+?),", text)
    if versions:
        print("tls: TLSv" + versions[0])
judge(text)
