package conntrack

// The numbers below are the kernel's user-space interface, named as its headers name them
// (linux/netfilter/nfnetlink_conntrack.h and nfnetlink_cthelper.h); golang.org/x/sys/unix does not carry them.

// Messages of the subsystems NFNL_SUBSYS_CTNETLINK, _CTNETLINK_EXP and _CTHELPER.
const (
	msgCTNew    = 0 // IPCTNL_MSG_CT_NEW
	msgCTGet    = 1 // IPCTNL_MSG_CT_GET
	msgCTDelete = 2 // IPCTNL_MSG_CT_DELETE

	msgExpNew    = 0 // IPCTNL_MSG_EXP_NEW
	msgExpGet    = 1 // IPCTNL_MSG_EXP_GET
	msgExpDelete = 2 // IPCTNL_MSG_EXP_DELETE

	msgHelperNew    = 0 // NFNL_MSG_CTHELPER_NEW
	msgHelperGet    = 1 // NFNL_MSG_CTHELPER_GET
	msgHelperDelete = 2 // NFNL_MSG_CTHELPER_DEL
)

// Attributes of a conntrack entry.
const (
	ctaTupleOrig   = 1
	ctaTupleReply  = 2
	ctaStatus      = 3
	ctaProtoInfo   = 4
	ctaHelp        = 5
	ctaTimeout     = 7
	ctaMark        = 8
	ctaID          = 12
	ctaTupleMaster = 14
	ctaSeqAdjOrig  = 15
	ctaSeqAdjReply = 16
	ctaMarkMask    = 21
	ctaLabels      = 22
	ctaLabelsMask  = 23
	ctaStatusMask  = 26

	ctaHelpName = 1
)

// statusExpected is the bit IPS_EXPECTED of CTA_STATUS: the connection was expected.
const statusExpected = 1

// Attributes of a TCP connection's state, and the states (enum tcp_conntrack) between which the handshake is over.
const (
	ctaProtoInfoTCP      = 1
	ctaProtoInfoTCPState = 1

	tcpEstablished = 3
	tcpClose       = 8
)

// Attributes of a CTA_SEQ_ADJ_*.
const (
	ctaSeqAdjPosition = 1 // CTA_SEQADJ_CORRECTION_POS
	ctaSeqAdjBefore   = 2
	ctaSeqAdjAfter    = 3
)

// Attributes of a tuple, in entries and expectations alike.
const (
	ctaTupleIP    = 1
	ctaTupleProto = 2

	ctaIPv4Src = 1
	ctaIPv4Dst = 2
	ctaIPv6Src = 3
	ctaIPv6Dst = 4

	ctaProtoNum     = 1
	ctaProtoSrcPort = 2
	ctaProtoDstPort = 3
)

// Attributes of an expectation.
const (
	ctaExpectMaster   = 1
	ctaExpectTuple    = 2
	ctaExpectMask     = 3
	ctaExpectTimeout  = 4
	ctaExpectHelpName = 6
	ctaExpectNAT      = 10
	ctaExpectFn       = 11

	ctaExpectNATDir   = 1
	ctaExpectNATTuple = 2
)

// Attributes of a helper that user space defines.
const (
	nfcthName        = 1
	nfcthTuple       = 2
	nfcthPolicy      = 4
	nfcthPrivDataLen = 5
	nfcthStatus      = 6

	nfcthTupleL3 = 1
	nfcthTupleL4 = 2

	nfcthPolicySetNum = 1
	nfcthPolicySet    = 2

	nfcthPolicyName          = 1
	nfcthPolicyExpectMax     = 2
	nfcthPolicyExpectTimeout = 3

	helperStatusDisabled = 0
)
