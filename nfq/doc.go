// Package nfq brings packets from the kernel's netfilter queues and takes verdicts back. It decodes their headers, and
// knows nothing of FTP.
package nfq
