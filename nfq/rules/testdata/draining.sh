#!/bin/sh
# ftpalg's rules. 'ftpalg run' installs them by itself; with --no-rules, run this.
set -e

# Packets with this mark are for this machine itself, whatever their address says.
ip -4 route replace local default dev lo table 21021 proto 21
[ -n "$(ip -4 rule show fwmark 0x10000000/0x10000000 table 21021)" ] ||
	ip -4 rule add pref 21 fwmark 0x10000000/0x10000000 lookup 21021 protocol 21

iptables-restore -w 5 --noflush <<'EOF'
*raw
:FTPALG-RAW - [0:0]
# Data on its way, which most packets are.
-A FTPALG-RAW -p tcp ! --syn -m multiport ! --ports 21,990 -j RETURN
# What a server says must come from where the server is: a client could forge the reply that opens a port.
-A FTPALG-RAW -s 198.51.100.2/32 -p tcp -m multiport --sports 21,990 -m rpfilter --invert -j DROP
# A control connection gets its helper when conntrack creates it: without one it can have no expectation. (The first counts.)
-A FTPALG-RAW -d 198.51.100.2/32 -p tcp -m multiport --dports 21,990 -j CT --helper sane
-A FTPALG-RAW -s 203.0.113.0/28 -p tcp -m multiport --sports 21,990 -m rpfilter --invert -j DROP
-A FTPALG-RAW -d 203.0.113.0/28 -p tcp -m multiport --dports 21,990 -j CT --helper sane
# A data connection under TLS announces itself by its SYN to the passive range. Who is not owed one goes on unhelped.
-A FTPALG-RAW -s 192.0.2.0/24 -d 198.51.100.2/32 -p tcp --dport 50000:50100 --syn -m addrtype ! --dst-type LOCAL -j NFQUEUE --queue-num 21 --queue-bypass
COMMIT
*mangle
:FTPALG-MANGLE - [0:0]
:FTPALG-TERMINATE0 - [0:0]
:FTPALG-DIVERT - [0:0]
:FTPALG-TPROXY - [0:0]
:FTPALG-PICKUP - [0:0]
:FTPALG-OUTPUT - [0:0]
:FTPALG-LABELS - [0:0]
:FTPALG-CARRIER - [0:0]
:FTPALG-CARRIER-IN - [0:0]
# Conntrack picks connections up in the middle. A control connection begins with its SYN.
-A FTPALG-MANGLE -p tcp ! --syn -m conntrack --ctstate NEW -j FTPALG-PICKUP
# Data connections of terminated sessions that go direct. A relayed one between the same ports, a moment ago, may have left a socket that waits (TIME-WAIT): their packets are not for it.
-A FTPALG-MANGLE -s 198.51.100.2/32 -p tcp -m conntrack --ctstatus EXPECTED -m connmark --mark 0x4000000/0x6000000 -j RETURN
-A FTPALG-MANGLE -d 198.51.100.2/32 -p tcp -m conntrack --ctstatus EXPECTED -m connmark --mark 0x4000000/0x6000000 -j RETURN
# Packets of connections that ftpalg's transparent sockets hold, on either side. (A SYN may find the socket of a connection that is over: it is for the listener.)
-A FTPALG-MANGLE -s 198.51.100.2/32 -p tcp ! --syn -m socket --transparent -j FTPALG-DIVERT
-A FTPALG-MANGLE -d 198.51.100.2/32 -p tcp ! --syn -m socket --transparent -j FTPALG-DIVERT
# Terminated control connections without a socket (yet, with SYN cookies; or any more): never forwarded.
-A FTPALG-MANGLE -d 198.51.100.2/32 -p tcp -m multiport --dports 21,990 -m connmark --mark 0x4000000/0x4000000 -j FTPALG-TPROXY
# New control connections: the policy's rules in their order say which are terminated.
-A FTPALG-MANGLE -d 198.51.100.2/32 -p tcp -m multiport --dports 21,990 -m conntrack --ctstate NEW -j FTPALG-TERMINATE0
# Data connections that ftpalg relays: they inherit the connmark of their control connection.
-A FTPALG-MANGLE -s 198.51.100.2/32 -p tcp -m connmark --mark 0x2000000/0x2000000 -j FTPALG-TPROXY
-A FTPALG-MANGLE -d 198.51.100.2/32 -p tcp -m connmark --mark 0x2000000/0x2000000 -j FTPALG-TPROXY
# Data on its way, which most packets are.
-A FTPALG-MANGLE -p tcp -m multiport ! --ports 21,990 -j RETURN
# Only segments with payload, of one byte or more, are read; the program is 'IP length > IP header + TCP header'.
-A FTPALG-MANGLE -d 198.51.100.2/32 -p tcp -m multiport --dports 21,990 -m bpf --bytecode "12,177 0 0 0,80 0 0 13,69 7 0 32,80 0 0 12,84 0 0 240,116 0 0 2,12 0 0 0,7 0 0 0,128 0 0 0,45 0 1 0,6 0 0 65535,6 0 0 0" -j NFQUEUE --queue-num 21
-A FTPALG-MANGLE -s 198.51.100.2/32 -p tcp -m multiport --sports 21,990 -m bpf --bytecode "12,177 0 0 0,80 0 0 13,69 7 0 32,80 0 0 12,84 0 0 240,116 0 0 2,12 0 0 0,7 0 0 0,128 0 0 0,45 0 1 0,6 0 0 65535,6 0 0 0" -j NFQUEUE --queue-num 21
# The server's SYN/ACK tells where a session begins: a new one takes nothing over from an old one between the same ports.
-A FTPALG-MANGLE -s 198.51.100.2/32 -p tcp -m multiport --sports 21,990 --tcp-flags FIN,SYN,RST,ACK SYN,ACK -j NFQUEUE --queue-num 21
-A FTPALG-MANGLE -d 203.0.113.0/28 -p tcp -m multiport --dports 21,990 -m bpf --bytecode "12,177 0 0 0,80 0 0 13,69 7 0 32,80 0 0 12,84 0 0 240,116 0 0 2,12 0 0 0,7 0 0 0,128 0 0 0,45 0 1 0,6 0 0 65535,6 0 0 0" -j NFQUEUE --queue-num 21
-A FTPALG-MANGLE -s 203.0.113.0/28 -p tcp -m multiport --sports 21,990 -m bpf --bytecode "12,177 0 0 0,80 0 0 13,69 7 0 32,80 0 0 12,84 0 0 240,116 0 0 2,12 0 0 0,7 0 0 0,128 0 0 0,45 0 1 0,6 0 0 65535,6 0 0 0" -j NFQUEUE --queue-num 21
-A FTPALG-MANGLE -s 203.0.113.0/28 -p tcp -m multiport --sports 21,990 --tcp-flags FIN,SYN,RST,ACK SYN,ACK -j NFQUEUE --queue-num 21
# Policy routing sends what has this mark to this machine itself.
-A FTPALG-DIVERT -p tcp -j MARK --set-xmark 0x10000000/0x10000000
-A FTPALG-DIVERT -p tcp -j ACCEPT
# To ftpalg's listener, with the addresses as they are.
-A FTPALG-TPROXY -p tcp -j CONNMARK --set-xmark 0x4000000/0x4000000
-A FTPALG-TPROXY -p tcp -j TPROXY --on-ip 127.0.0.1 --on-port 21021 --tproxy-mark 0x10000000/0x10000000
-A FTPALG-PICKUP -d 198.51.100.2/32 -p tcp -m multiport --dports 21,990 -j DROP
-A FTPALG-PICKUP -s 198.51.100.2/32 -p tcp -m multiport --sports 21,990 -j DROP
-A FTPALG-PICKUP -d 203.0.113.0/28 -p tcp -m multiport --dports 21,990 -j DROP
-A FTPALG-PICKUP -s 203.0.113.0/28 -p tcp -m multiport --sports 21,990 -j DROP
# The same for what ftpalg's own sockets send to clients.
-A FTPALG-OUTPUT -s 198.51.100.2/32 -p tcp ! --syn -m multiport --sports 21,990 -m conntrack --ctstate NEW -j DROP
# While a rule uses labels, conntrack makes room for one in each entry: ftpalg keeps there whether a session is in TLS.
-A FTPALG-LABELS -m connlabel --label 0
-A FTPALG-CARRIER -p tcp -m multiport ! --ports 21,990 -j RETURN
# The helper 'sane' must never see a request of its own protocol: it would open a port of the server's.
-A FTPALG-CARRIER -d 198.51.100.2/32 -p tcp -m multiport --dports 21,990 -m bpf --bytecode "16,128 0 0 0,20 0 0 8,7 0 0 0,64 0 0 0,21 0 10 7,177 0 0 0,80 0 0 12,84 0 0 240,116 0 0 2,12 0 0 0,4 0 0 8,7 0 0 0,128 0 0 0,29 0 1 0,6 0 0 65535,6 0 0 0" -j DROP
-A FTPALG-CARRIER -d 203.0.113.0/28 -p tcp -m multiport --dports 21,990 -m bpf --bytecode "16,128 0 0 0,20 0 0 8,7 0 0 0,64 0 0 0,21 0 10 7,177 0 0 0,80 0 0 12,84 0 0 240,116 0 0 2,12 0 0 0,4 0 0 8,7 0 0 0,128 0 0 0,29 0 1 0,6 0 0 65535,6 0 0 0" -j DROP
-A FTPALG-CARRIER-IN -p tcp -m multiport ! --ports 21,990 -j RETURN
-A FTPALG-CARRIER-IN -d 198.51.100.2/32 -p tcp -m multiport --dports 21,990 -m bpf --bytecode "16,128 0 0 0,20 0 0 8,7 0 0 0,64 0 0 0,21 0 10 7,177 0 0 0,80 0 0 12,84 0 0 240,116 0 0 2,12 0 0 0,4 0 0 8,7 0 0 0,128 0 0 0,29 0 1 0,6 0 0 65535,6 0 0 0" -j DROP
-A FTPALG-CARRIER-IN -d 203.0.113.0/28 -p tcp -m multiport --dports 21,990 -m bpf --bytecode "16,128 0 0 0,20 0 0 8,7 0 0 0,64 0 0 0,21 0 10 7,177 0 0 0,80 0 0 12,84 0 0 240,116 0 0 2,12 0 0 0,4 0 0 8,7 0 0 0,128 0 0 0,29 0 1 0,6 0 0 65535,6 0 0 0" -j DROP
COMMIT
*filter
:FTPALG-FORWARD - [0:0]
:FTPALG-SERVER0 - [0:0]
:FTPALG-SERVER1 - [0:0]
:FTPALG-DATA - [0:0]
:FTPALG-INPUT - [0:0]
:FTPALG-OUTPUT - [0:0]
# A session that ftpalg ends: the packet left the queue with this mark.
-A FTPALG-FORWARD -p tcp -m mark --mark 0x20000000/0x20000000 -j REJECT --reject-with tcp-reset
# Data connections: conntrack knows them as the children of a control connection with our helper.
-A FTPALG-FORWARD -p tcp -m conntrack --ctstate RELATED,ESTABLISHED -m helper --helper sane -j FTPALG-DATA
# Both directions of a connection that was opened to a control port, and of no other with that source port.
-A FTPALG-FORWARD -p tcp -m conntrack --ctstate ESTABLISHED --ctorigdst 198.51.100.2/32 --ctorigdstport 21 -j ACCEPT
-A FTPALG-FORWARD -p tcp -m conntrack --ctstate ESTABLISHED --ctorigdst 198.51.100.2/32 --ctorigdstport 990 -j ACCEPT
# New control connections: the policy's rules in their order. (Goto: what that chain leaves goes on behind this one.)
-A FTPALG-FORWARD -d 198.51.100.2/32 -p tcp -m multiport --dports 21,990 -m conntrack --ctstate NEW -g FTPALG-SERVER0
-A FTPALG-FORWARD -p tcp -m conntrack --ctstate ESTABLISHED --ctorigdst 203.0.113.0/28 --ctorigdstport 21 -j ACCEPT
-A FTPALG-FORWARD -p tcp -m conntrack --ctstate ESTABLISHED --ctorigdst 203.0.113.0/28 --ctorigdstport 990 -j ACCEPT
-A FTPALG-FORWARD -d 203.0.113.0/28 -p tcp -m multiport --dports 21,990 -m conntrack --ctstate NEW -g FTPALG-SERVER1
# Rule "no guests" of the policy, for server "files".
-A FTPALG-SERVER0 -s 192.0.2.66/32 -p tcp -j REJECT --reject-with tcp-reset
# Rule "trusted to files" of the policy, for server "files".
-A FTPALG-SERVER0 -s 192.0.2.77/32 -p tcp -j ACCEPT
# Rule "office to files" of the policy, for server "files".
-A FTPALG-SERVER0 -s 192.0.2.0/24 -p tcp -j ACCEPT
# No rule of the policy lets anybody else to server "files".
-A FTPALG-SERVER0 -p tcp -j REJECT --reject-with tcp-reset
# Rule "no guests" of the policy, for server "mirror".
-A FTPALG-SERVER1 -s 192.0.2.66/32 -p tcp -j REJECT --reject-with tcp-reset
# Rule "office to mirror" of the policy, for server "mirror".
-A FTPALG-SERVER1 -s 192.0.2.0/24 -p tcp -j ACCEPT
# No rule of the policy lets anybody else to server "mirror".
-A FTPALG-SERVER1 -p tcp -j REJECT --reject-with tcp-reset
# The helper may carry other connections of yours: only those from and to a server of the policy are let through.
-A FTPALG-DATA -d 198.51.100.2/32 -j ACCEPT
-A FTPALG-DATA -s 198.51.100.2/32 -j ACCEPT
-A FTPALG-DATA -d 203.0.113.0/28 -j ACCEPT
-A FTPALG-DATA -s 203.0.113.0/28 -j ACCEPT
# To ftpalg's transparent sockets: the mangle table found them.
-A FTPALG-INPUT -p tcp -m mark --mark 0x10000000/0x10000000 -j ACCEPT
# From ftpalg's sockets.
-A FTPALG-OUTPUT -p tcp -m mark --mark 0x8000000/0x8000000 -j ACCEPT
COMMIT
EOF
# The jumps come last, when what they lead to is whole.
iptables -w 5 -t raw -C PREROUTING -p tcp -j FTPALG-RAW 2>/dev/null ||
	iptables -w 5 -t raw -I PREROUTING 1 -p tcp -j FTPALG-RAW
iptables -w 5 -t mangle -C PREROUTING -p tcp -j FTPALG-MANGLE 2>/dev/null ||
	iptables -w 5 -t mangle -I PREROUTING 1 -p tcp -j FTPALG-MANGLE
iptables -w 5 -t mangle -C OUTPUT -p tcp -j FTPALG-OUTPUT 2>/dev/null ||
	iptables -w 5 -t mangle -I OUTPUT 1 -p tcp -j FTPALG-OUTPUT
iptables -w 5 -t mangle -C FORWARD -p tcp -j FTPALG-CARRIER 2>/dev/null ||
	iptables -w 5 -t mangle -I FORWARD 1 -p tcp -j FTPALG-CARRIER
iptables -w 5 -t mangle -C INPUT -p tcp -j FTPALG-CARRIER-IN 2>/dev/null ||
	iptables -w 5 -t mangle -I INPUT 1 -p tcp -j FTPALG-CARRIER-IN
iptables -w 5 -t filter -C FORWARD -p tcp -j FTPALG-FORWARD 2>/dev/null ||
	iptables -w 5 -t filter -I FORWARD 1 -p tcp -j FTPALG-FORWARD
iptables -w 5 -t filter -C INPUT -p tcp -j FTPALG-INPUT 2>/dev/null ||
	iptables -w 5 -t filter -I INPUT 1 -p tcp -j FTPALG-INPUT
iptables -w 5 -t filter -C OUTPUT -p tcp -j FTPALG-OUTPUT 2>/dev/null ||
	iptables -w 5 -t filter -I OUTPUT 1 -p tcp -j FTPALG-OUTPUT

ip6tables-restore -w 5 --noflush <<'EOF'
*raw
:FTPALG-RAW - [0:0]
# Data on its way, which most packets are.
-A FTPALG-RAW -p tcp ! --syn -m multiport ! --ports 21,990 -j RETURN
# What a server says must come from where the server is: a client could forge the reply that opens a port.
-A FTPALG-RAW -s 2001:db8:2::2/128 -p tcp -m multiport --sports 21,990 -m rpfilter --invert -j DROP
# A control connection gets its helper when conntrack creates it: without one it can have no expectation. (The first counts.)
-A FTPALG-RAW -d 2001:db8:2::2/128 -p tcp -m multiport --dports 21,990 -j CT --helper sane
# A data connection under TLS announces itself by its SYN to the passive range. Who is not owed one goes on unhelped.
-A FTPALG-RAW -s 2001:db8:1::/64 -d 2001:db8:2::2/128 -p tcp --dport 50000:50100 --syn -m addrtype ! --dst-type LOCAL -j NFQUEUE --queue-num 21 --queue-bypass
COMMIT
*mangle
:FTPALG-MANGLE - [0:0]
:FTPALG-PICKUP - [0:0]
:FTPALG-LABELS - [0:0]
:FTPALG-CARRIER - [0:0]
# Conntrack picks connections up in the middle. A control connection begins with its SYN.
-A FTPALG-MANGLE -p tcp ! --syn -m conntrack --ctstate NEW -j FTPALG-PICKUP
# Data on its way, which most packets are.
-A FTPALG-MANGLE -p tcp -m multiport ! --ports 21,990 -j RETURN
# Only segments with payload, of one byte or more, are read; the program is 'IP length > IP header + TCP header'.
-A FTPALG-MANGLE -d 2001:db8:2::2/128 -p tcp -m multiport --dports 21,990 -m bpf --bytecode "13,48 0 0 6,21 0 9 6,48 0 0 53,69 7 0 32,48 0 0 52,84 0 0 240,116 0 0 2,4 0 0 40,7 0 0 0,128 0 0 0,45 0 1 0,6 0 0 65535,6 0 0 0" -j NFQUEUE --queue-num 21
-A FTPALG-MANGLE -s 2001:db8:2::2/128 -p tcp -m multiport --sports 21,990 -m bpf --bytecode "13,48 0 0 6,21 0 9 6,48 0 0 53,69 7 0 32,48 0 0 52,84 0 0 240,116 0 0 2,4 0 0 40,7 0 0 0,128 0 0 0,45 0 1 0,6 0 0 65535,6 0 0 0" -j NFQUEUE --queue-num 21
# The server's SYN/ACK tells where a session begins: a new one takes nothing over from an old one between the same ports.
-A FTPALG-MANGLE -s 2001:db8:2::2/128 -p tcp -m multiport --sports 21,990 --tcp-flags FIN,SYN,RST,ACK SYN,ACK -j NFQUEUE --queue-num 21
-A FTPALG-PICKUP -d 2001:db8:2::2/128 -p tcp -m multiport --dports 21,990 -j DROP
-A FTPALG-PICKUP -s 2001:db8:2::2/128 -p tcp -m multiport --sports 21,990 -j DROP
# While a rule uses labels, conntrack makes room for one in each entry: ftpalg keeps there whether a session is in TLS.
-A FTPALG-LABELS -m connlabel --label 0
-A FTPALG-CARRIER -p tcp -m multiport ! --ports 21,990 -j RETURN
# The helper 'sane' must never see a request of its own protocol: it would open a port of the server's.
-A FTPALG-CARRIER -d 2001:db8:2::2/128 -p tcp -m multiport --dports 21,990 -m bpf --bytecode "16,128 0 0 0,20 0 0 8,7 0 0 0,64 0 0 0,21 0 10 7,48 0 0 6,21 0 7 6,48 0 0 52,84 0 0 240,116 0 0 2,4 0 0 48,7 0 0 0,128 0 0 0,29 0 1 0,6 0 0 65535,6 0 0 0" -j DROP
COMMIT
*filter
:FTPALG-FORWARD - [0:0]
:FTPALG-SERVER0 - [0:0]
:FTPALG-DATA - [0:0]
# A session that ftpalg ends: the packet left the queue with this mark.
-A FTPALG-FORWARD -p tcp -m mark --mark 0x20000000/0x20000000 -j REJECT --reject-with tcp-reset
# Data connections: conntrack knows them as the children of a control connection with our helper.
-A FTPALG-FORWARD -p tcp -m conntrack --ctstate RELATED,ESTABLISHED -m helper --helper sane -j FTPALG-DATA
# Both directions of a connection that was opened to a control port, and of no other with that source port.
-A FTPALG-FORWARD -p tcp -m conntrack --ctstate ESTABLISHED --ctorigdst 2001:db8:2::2/128 --ctorigdstport 21 -j ACCEPT
-A FTPALG-FORWARD -p tcp -m conntrack --ctstate ESTABLISHED --ctorigdst 2001:db8:2::2/128 --ctorigdstport 990 -j ACCEPT
# New control connections: the policy's rules in their order. (Goto: what that chain leaves goes on behind this one.)
-A FTPALG-FORWARD -d 2001:db8:2::2/128 -p tcp -m multiport --dports 21,990 -m conntrack --ctstate NEW -g FTPALG-SERVER0
# Rule "no guests" of the policy, for server "files".
-A FTPALG-SERVER0 -s 2001:db8:1::66/128 -p tcp -j REJECT --reject-with tcp-reset
# Rule "trusted to files" of the policy, for server "files".
-A FTPALG-SERVER0 -s 2001:db8:1::77/128 -p tcp -j ACCEPT
# Rule "office to files" of the policy, for server "files".
-A FTPALG-SERVER0 -s 2001:db8:1::/64 -p tcp -j ACCEPT
# No rule of the policy lets anybody else to server "files".
-A FTPALG-SERVER0 -p tcp -j REJECT --reject-with tcp-reset
# The helper may carry other connections of yours: only those from and to a server of the policy are let through.
-A FTPALG-DATA -d 2001:db8:2::2/128 -j ACCEPT
-A FTPALG-DATA -s 2001:db8:2::2/128 -j ACCEPT
COMMIT
EOF
# The jumps come last, when what they lead to is whole.
ip6tables -w 5 -t raw -C PREROUTING -p tcp -j FTPALG-RAW 2>/dev/null ||
	ip6tables -w 5 -t raw -I PREROUTING 1 -p tcp -j FTPALG-RAW
ip6tables -w 5 -t mangle -C PREROUTING -p tcp -j FTPALG-MANGLE 2>/dev/null ||
	ip6tables -w 5 -t mangle -I PREROUTING 1 -p tcp -j FTPALG-MANGLE
ip6tables -w 5 -t mangle -C FORWARD -p tcp -j FTPALG-CARRIER 2>/dev/null ||
	ip6tables -w 5 -t mangle -I FORWARD 1 -p tcp -j FTPALG-CARRIER
ip6tables -w 5 -t filter -C FORWARD -p tcp -j FTPALG-FORWARD 2>/dev/null ||
	ip6tables -w 5 -t filter -I FORWARD 1 -p tcp -j FTPALG-FORWARD
