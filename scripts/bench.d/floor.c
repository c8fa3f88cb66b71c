/* The NFQUEUE floor: a program that accepts every packet at once and does nothing else, on libnetfilter_queue. What
 * ftpalg adds to a round trip is compared with what this adds.
 *
 *   cc -O2 -o floor floor.c -lnetfilter_queue && ./floor QUEUE-NUMBER
 *
 * It prints "ready" when the queue is bound. */
#include <arpa/inet.h>
#include <errno.h>
#include <libnetfilter_queue/libnetfilter_queue.h>
#include <linux/netfilter.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

static void die(const char *what) {
	perror(what);
	exit(1);
}

static int accept_packet(struct nfq_q_handle *queue, struct nfgenmsg *msg, struct nfq_data *packet, void *unused) {
	struct nfqnl_msg_packet_hdr *header = nfq_get_msg_packet_hdr(packet);
	(void)msg;
	(void)unused;
	return header ? nfq_set_verdict(queue, ntohl(header->packet_id), NF_ACCEPT, 0, NULL) : -1;
}

int main(int argc, char **argv) {
	static char buf[0x20000] __attribute__((aligned(8)));
	if (argc != 2) {
		fprintf(stderr, "usage: floor QUEUE-NUMBER\n");
		return 2;
	}
	struct nfq_handle *lib = nfq_open();
	if (!lib)
		die("nfq_open");
	struct nfq_q_handle *queue = nfq_create_queue(lib, atoi(argv[1]), accept_packet, NULL);
	if (!queue)
		die("nfq_create_queue");
	if (nfq_set_mode(queue, NFQNL_COPY_PACKET, 0xffff) < 0 || nfq_set_queue_maxlen(queue, 8192) < 0)
		die("configure the queue");
	puts("ready");
	fflush(stdout);
	for (;;) {
		int n = recv(nfq_fd(lib), buf, sizeof(buf), 0);
		if (n >= 0)
			nfq_handle_packet(lib, buf, n);
		else if (errno != ENOBUFS && errno != EINTR)
			die("recv");
	}
}
