package nbd

import (
	"encoding/binary"
	"fmt"
)

// Magic numbers of the handshake and of the messages.
const (
	magicInit       = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption     = 0x49484156454f5054 // "IHAVEOPT"
	magicOldstyle   = 0x00420281861253
	magicReply      = 0x3e889045565a9 // of the reply to an option
	magicRequest    = 0x25609513
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef
)

// Flags of the handshake, of the server (16 bits) and of the client (32 bits).
const (
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1
)

// Options.
const (
	optExportName      = 1
	optAbort           = 2
	optList            = 3
	optStartTLS        = 5
	optInfo            = 6
	optGo              = 7
	optStructuredReply = 8
	optListMeta        = 9
	optSetMeta         = 10
)

// Replies to options.
const (
	repAck         = 1
	repServer      = 2
	repInfo        = 3
	repMetaContext = 4

	repError        = 1 << 31 // set in all of the following
	repErrUnsup     = repError | 1
	repErrPolicy    = repError | 2
	repErrInvalid   = repError | 3
	repErrPlatform  = repError | 4
	repErrTLSReqd   = repError | 5
	repErrUnknown   = repError | 6
	repErrShutdown  = repError | 7
	repErrBlockSize = repError | 8
	repErrTooBig    = repError | 9
)

// Kinds of information about an export.
const (
	infoExport      = 0
	infoName        = 1
	infoDescription = 2
	infoBlockSize   = 3
)

// Flags are the transmission flags of an export: what its server can do.
type Flags uint16

// The transmission flags.
const (
	HasFlags       Flags = 1 << 0
	ReadOnly       Flags = 1 << 1
	CanFlush       Flags = 1 << 2
	CanFUA         Flags = 1 << 3
	Rotational     Flags = 1 << 4
	CanTrim        Flags = 1 << 5
	CanWriteZeroes Flags = 1 << 6
	CanDF          Flags = 1 << 7
	CanMultiConn   Flags = 1 << 8
	CanCache       Flags = 1 << 10
	CanFastZero    Flags = 1 << 11
)

// Has reports whether all flags of g are set.
func (f Flags) Has(g Flags) bool { return f&g == g }

// command is the type of a request.
type command uint16

const (
	cmdRead        command = 0
	cmdWrite       command = 1
	cmdDisc        command = 2
	cmdFlush       command = 3
	cmdTrim        command = 4
	cmdCache       command = 5
	cmdWriteZeroes command = 6
	cmdBlockStatus command = 7
)

var commandNames = [...]string{"read", "write", "disconnect", "flush", "trim", "cache", "write zeroes", "block status"}

func (c command) String() string {
	if int(c) < len(commandNames) {
		return commandNames[c]
	}
	return fmt.Sprintf("command(%d)", uint16(c))
}

// Flags of a request.
const (
	cmdFlagFUA      = 1 << 0
	cmdFlagNoHole   = 1 << 1
	cmdFlagDF       = 1 << 2
	cmdFlagReqOne   = 1 << 3
	cmdFlagFastZero = 1 << 4
)

// Chunks of a structured reply.
const (
	chunkDone = 1 << 0 // flag: the last of its reply

	chunkNone        = 0
	chunkData        = 1
	chunkHole        = 2
	chunkStatus      = 5
	chunkError       = 1 << 15 // set in all chunks of errors
	chunkPlainError  = chunkError | 1
	chunkErrorOffset = chunkError | 2
)

// Flags of an extent of the context base:allocation.
const (
	StateHole uint32 = 1 << 0 // not allocated
	StateZero uint32 = 1 << 1 // reads as zeroes
)

// BaseAllocation is the metadata context the protocol itself defines; its flags
// are StateHole and StateZero.
const BaseAllocation = "base:allocation"

// Sizes of messages and limits, in bytes.
const (
	requestSize     = 28
	simpleSize      = 16
	chunkSize       = 20            // header of a structured chunk
	dataChunkSize   = chunkSize + 8 // with the offset of its data
	holeChunkSize   = chunkSize + 12
	optionSize      = 16
	optionReplySize = 20

	maxString  = 4096    // of a string, by the protocol
	maxOption  = 1 << 16 // of the data of an option that is read
	maxSkipped = 1 << 26 // of the data of an option, or of a write, that is skipped

	// MaxPayload is the largest payload of a request or a reply in bytes that
	// this package sends or takes.
	MaxPayload = 32 << 20
	// DefaultPayload is the largest payload in bytes when a server names none.
	defaultPayload   = 32 << 20
	defaultPreferred = 4096

	// maxExtents is how many extents of one context a reply has at most.
	maxExtents = 1 << 15
	// maxContexts is how many contexts a connection may select.
	maxContexts = 16
)

// request is the header of a request.
type request struct {
	cmd    command
	flags  uint16
	cookie uint64
	off    uint64
	length uint32
}

// end returns the first byte after the range of the request; ok is false when
// there is no such number.
func (r *request) end() (end uint64, ok bool) {
	end = r.off + uint64(r.length)
	return end, end >= r.off
}

// parseRequest reads the header of a request from the first requestSize bytes
// of p; false when they are not one.
func parseRequest(p []byte, r *request) bool {
	_ = p[requestSize-1]
	if binary.BigEndian.Uint32(p) != magicRequest {
		return false
	}
	r.flags = binary.BigEndian.Uint16(p[4:])
	r.cmd = command(binary.BigEndian.Uint16(p[6:]))
	r.cookie = binary.BigEndian.Uint64(p[8:])
	r.off = binary.BigEndian.Uint64(p[16:])
	r.length = binary.BigEndian.Uint32(p[24:])
	return true
}

func appendRequest(p []byte, r *request) []byte {
	p = binary.BigEndian.AppendUint32(p, magicRequest)
	p = binary.BigEndian.AppendUint16(p, r.flags)
	p = binary.BigEndian.AppendUint16(p, uint16(r.cmd))
	p = binary.BigEndian.AppendUint64(p, r.cookie)
	p = binary.BigEndian.AppendUint64(p, r.off)
	return binary.BigEndian.AppendUint32(p, r.length)
}

// appendSimple appends the header of a simple reply.
func appendSimple(p []byte, cookie uint64, e Errno) []byte {
	p = binary.BigEndian.AppendUint32(p, magicSimple)
	p = binary.BigEndian.AppendUint32(p, uint32(e))
	return binary.BigEndian.AppendUint64(p, cookie)
}

// appendChunk appends the header of a chunk with n bytes of payload.
func appendChunk(p []byte, cookie uint64, flags, kind uint16, n int) []byte {
	p = binary.BigEndian.AppendUint32(p, magicStructured)
	p = binary.BigEndian.AppendUint16(p, flags)
	p = binary.BigEndian.AppendUint16(p, kind)
	p = binary.BigEndian.AppendUint64(p, cookie)
	return binary.BigEndian.AppendUint32(p, uint32(n))
}

// appendDataChunk appends the header of a chunk of n bytes of data, which are
// to follow.
func appendDataChunk(p []byte, cookie uint64, flags uint16, off uint64, n int) []byte {
	p = appendChunk(p, cookie, flags, chunkData, 8+n)
	return binary.BigEndian.AppendUint64(p, off)
}

func appendHoleChunk(p []byte, cookie uint64, flags uint16, off uint64, n int) []byte {
	p = appendChunk(p, cookie, flags, chunkHole, 12)
	p = binary.BigEndian.AppendUint64(p, off)
	return binary.BigEndian.AppendUint32(p, uint32(n))
}

// appendErrorChunk appends a chunk that ends its reply with an error.
func appendErrorChunk(p []byte, cookie uint64, e Errno, message string) []byte {
	message = cutString(message)
	p = appendChunk(p, cookie, chunkDone, chunkPlainError, 6+len(message))
	p = binary.BigEndian.AppendUint32(p, uint32(e))
	p = binary.BigEndian.AppendUint16(p, uint16(len(message)))
	return append(p, message...)
}

// appendOption appends an option of a client.
func appendOption(p []byte, option uint32, data []byte) []byte {
	p = binary.BigEndian.AppendUint64(p, magicOption)
	p = binary.BigEndian.AppendUint32(p, option)
	p = binary.BigEndian.AppendUint32(p, uint32(len(data)))
	return append(p, data...)
}

// appendOptionReply appends a reply of a server to an option.
func appendOptionReply(p []byte, option, kind uint32, data []byte) []byte {
	p = binary.BigEndian.AppendUint64(p, magicReply)
	p = binary.BigEndian.AppendUint32(p, option)
	p = binary.BigEndian.AppendUint32(p, kind)
	p = binary.BigEndian.AppendUint32(p, uint32(len(data)))
	return append(p, data...)
}

// appendString appends a string with its length in 32 bits.
func appendString(p []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(p, uint32(len(s))), s...)
}

// cutString returns at most maxString bytes of s, and no half character.
func cutString(s string) string {
	if len(s) <= maxString {
		return s
	}
	n := maxString
	for n > 0 && s[n]&0xc0 == 0x80 {
		n--
	}
	return s[:n]
}

// fields takes numbers and strings off the data of an option or a reply. After
// a failure everything it returns is zero, and bad stays set.
type fields struct {
	p   []byte
	bad bool
}

func (f *fields) take(n int) []byte {
	if n < 0 || n > len(f.p) {
		f.bad, f.p = true, nil
		return nil
	}
	p := f.p[:n]
	f.p = f.p[n:]
	return p
}

func (f *fields) u16() uint16 {
	if p := f.take(2); p != nil {
		return binary.BigEndian.Uint16(p)
	}
	return 0
}

func (f *fields) u32() uint32 {
	if p := f.take(4); p != nil {
		return binary.BigEndian.Uint32(p)
	}
	return 0
}

func (f *fields) u64() uint64 {
	if p := f.take(8); p != nil {
		return binary.BigEndian.Uint64(p)
	}
	return 0
}

// str takes a string with its length in 32 bits before it.
func (f *fields) str() string {
	n := f.u32()
	if n > maxString {
		f.bad, f.p = true, nil
		return ""
	}
	return string(f.take(int(n)))
}

// end reports whether all was well and nothing is left.
func (f *fields) end() bool { return !f.bad && len(f.p) == 0 }
