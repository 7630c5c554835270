package nbd

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/snapferry/snapferry"
)

const (
	// inputSize is the read buffer of a turn: it holds a burst of small writes.
	inputSize = 256 << 10
	// outputSize is the buffer of a turn's replies.
	outputSize = 256 << 10
	// smallOp is the largest read or write that is done by the turn itself.
	smallOp = 64 << 10
	// bulkFill is what is read at a time between large writes.
	bulkFill = 4 << 10
	// yieldEvery is after how many reads of the wire others may run. The runtime
	// does not see that a goroutine that blocks in short system calls is always
	// there first.
	yieldEvery = 16
	// slowPace is what requests take that are better spread over workers, where
	// there are several: a switch costs less.
	slowPace = 20 * time.Microsecond
	// caution is how many requests, after one that made the turn pass, are
	// handed to workers though nothing else is in work.
	caution = 64
)

// session is a connection in transmission.
type session struct {
	exp        *Export
	dev        Device
	size       uint64
	structured bool
	contexts   []metaContext
	cfg        *ServerConfig
	wire       wire

	// Abilities of dev, nil where it lacks them.
	now    Immediate
	trim   Trimmer
	zero   Zeroer
	syncer SyncWriter
	cache  Cacher
	holes  Holer
	status Statuser

	ctx     context.Context // of the requests in work; ends when the session is given up
	closing atomic.Bool     // ESHUTDOWN for what is read from now on

	writing sync.Mutex // held to write to the wire
	failed  error      // why writing is no longer possible; under writing

	turns   sync.WaitGroup // goroutines that have the turn, or had it
	ended   chan error     // of the last turn, once
	strays  atomic.Int32   // turns that were passed and whose request is not done yet
	careful int            // requests left of caution; of who has the turn
	pace    time.Duration  // what a request that the turn does itself took lately; of who has the turn
	watch   watchdog
	work    workers
	buffers buffers
}

func newSession(cfg *ServerConfig, h *handshake, w wire) *session {
	s := &session{
		exp: h.chosen, dev: h.chosen.Device, size: uint64(h.chosen.Device.Size()),
		structured: h.structured, contexts: h.contexts, cfg: cfg, wire: w, ended: make(chan error, 1),
	}
	s.now, _ = s.dev.(Immediate)
	s.trim, _ = s.dev.(Trimmer)
	s.zero, _ = s.dev.(Zeroer)
	s.syncer, _ = s.dev.(SyncWriter)
	s.cache, _ = s.dev.(Cacher)
	s.holes, _ = s.dev.(Holer)
	s.status, _ = s.dev.(Statuser)
	return s
}

// run serves the connection to its end and closes it.
func (s *session) run(ctx context.Context) error {
	// What waits in the device goes on when ctx ends, for the time of grace.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	s.ctx = work
	s.work.start(s, s.cfg.Workers)
	s.watch.start(s)
	graceful := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(graceful)
		s.closing.Store(true)
		s.wire.CloseRead()
	})
	grace := newGrace(ctx, s.cfg.Grace, func() {
		cancel()
		s.wire.Abort()
	})
	s.turns.Go(func() { s.serve(newTurn()) })
	err := <-s.ended
	s.work.stop()
	s.turns.Wait()
	s.watch.stop()
	if !stop() {
		<-graceful
	}
	grace.end()
	s.writing.Lock()
	err = errors.Join(err, s.failed)
	s.writing.Unlock()
	return errors.Join(err, s.wire.Close())
}

// turn is the right to read requests from the connection, and the buffers with
// which it is exercised. Exactly one goroutine has it at a time.
//
// While it does a request itself it may be stuck for longer than was thought.
// Then the watchdog makes another turn of what this one has not looked at yet,
// and the goroutine that was stuck keeps its buffers, for its one request: its
// payload lies in in before r, its reply in out from mark on.
type turn struct {
	in    []byte
	r, w  int // in[r:w] is read from the wire and not looked at
	out   []byte
	mark  int    // the reply that is being made begins here in out
	fills uint   // how often in was filled
	own   int    // small reads and writes that were done
	bulk  bool   // the last request was a large write
	pre   []byte // replies of an earlier turn, to be written before anything else
	req   request
}

func newTurn() *turn {
	return &turn{in: make([]byte, inputSize), out: make([]byte, 0, outputSize)}
}

// pass returns the turn that goes on after t, which is stuck with a request.
func (t *turn) pass() *turn {
	n := newTurn()
	n.w = copy(n.in, t.in[t.r:t.w])
	n.pre = t.out[:t.mark:t.mark]
	return n
}

// errDisconnect ends a session whose client said so.
var errDisconnect = errors.New("disconnected")

// errPassed ends the goroutine of a turn that was passed to another.
var errPassed = errors.New("the turn was passed")

// serve exercises the turn until the connection ends or the turn is passed.
func (s *session) serve(t *turn) {
	err := s.requests(t)
	if err == errPassed {
		return
	}
	if ferr := s.flush(t); err == errDisconnect {
		err = ferr
	}
	s.ended <- err
}

// requests reads and does requests until there is a reason to end, which is
// errDisconnect for a good one.
func (s *session) requests(t *turn) error {
	if t.pre != nil {
		if err := s.flush(t); err != nil {
			return err
		}
	}
	for {
		began, own := time.Now(), t.own
		for t.w-t.r >= requestSize {
			if !parseRequest(t.in[t.r:], &t.req) {
				return snapferry.Errorf(snapferry.Invalid, "the client sent no request where one must be")
			}
			if t.req.cmd == cmdWrite && t.req.length <= smallOp && t.w-t.r < requestSize+int(t.req.length) {
				break // its payload is still to come
			}
			t.r += requestSize
			t.bulk = t.req.cmd == cmdWrite && t.req.length > smallOp
			if err := s.request(t); err != nil {
				return err
			}
		}
		if n := t.own - own; n > 0 {
			s.pace += (time.Since(began)/time.Duration(n) - s.pace) / 8
		}
		if err := s.flush(t); err != nil {
			return err
		}
		if err := s.fill(t); err != nil {
			return err
		}
	}
}

// fill reads more from the wire.
func (s *session) fill(t *turn) error {
	if t.r == t.w {
		t.r, t.w = 0, 0
	} else if t.r > 0 {
		t.w = copy(t.in, t.in[t.r:t.w])
		t.r = 0
	}
	p := t.in[t.w:]
	if t.bulk {
		// Likely another: what of its payload is read here is copied once more.
		p = p[:min(len(p), bulkFill)]
	}
	if t.fills++; t.fills%yieldEvery == 0 {
		runtime.Gosched()
	}
	n, err := s.wire.Read(p, !s.work.idle())
	t.w += n
	switch {
	case n > 0 || err == nil:
		return nil
	case s.closing.Load():
		return errDisconnect
	case err == io.EOF && t.w > 0:
		return io.ErrUnexpectedEOF
	case err == io.EOF:
		return errDisconnect
	}
	return err
}

// flush writes the replies that the turn has collected.
func (s *session) flush(t *turn) error {
	if t.pre != nil {
		pre := t.pre
		t.pre = nil
		if err := s.send(pre); err != nil {
			return err
		}
	}
	if len(t.out) == 0 {
		return nil
	}
	out := t.out
	t.out = t.out[:0]
	return s.send(out)
}

// room makes room for n bytes in the output, whose reply begins there.
func (s *session) room(t *turn, n int) error {
	if cap(t.out)-len(t.out) < n {
		if err := s.flush(t); err != nil {
			return err
		}
	}
	t.mark = len(t.out)
	return nil
}

// send writes replies to the wire, behind those that are being written.
func (s *session) send(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.failed != nil {
		return s.failed
	}
	return s.sent(s.wire.Write(p))
}

// sendParts does as send.
func (s *session) sendParts(p net.Buffers) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.failed != nil {
		return s.failed
	}
	return s.sent(s.wire.WriteParts(p))
}

// sent notes that a write failed: part of a reply may be out, nothing may
// follow it. Who reads is woken, to find the end.
func (s *session) sent(err error) error {
	if err != nil {
		s.failed = err
		s.wire.Abort()
	}
	return err
}

// request does the request t.req, or hands it to a worker. The payload of a
// small write lies in the input.
func (s *session) request(t *turn) error {
	r := &t.req
	if r.cmd == cmdDisc {
		return errDisconnect
	}
	if e, why := s.check(r); e != 0 {
		if err := s.skipPayload(t); err != nil {
			return err
		}
		return s.replyError(t, e, why)
	}
	if r.length == 0 && r.cmd != cmdFlush {
		return s.replyDone(t)
	}
	switch {
	case r.cmd == cmdRead && r.length <= smallOp:
		return s.smallRead(t)
	case r.cmd == cmdWrite && r.length <= smallOp:
		return s.smallWrite(t)
	case r.cmd == cmdWrite || r.cmd == cmdRead || r.cmd == cmdBlockStatus || r.cmd == cmdCache || !s.alone(t):
		return s.hand(t)
	}
	return s.own(t)
}

// alone reports whether nothing else is to do on the connection.
func (s *session) alone(t *turn) bool {
	if s.careful > 0 {
		s.careful--
		return false
	}
	return t.r == t.w && s.work.idle() && s.strays.Load() == 0
}

// known lists the flags that each command may have.
var known = [...]uint16{
	cmdRead:        cmdFlagFUA | cmdFlagDF,
	cmdWrite:       cmdFlagFUA,
	cmdDisc:        0,
	cmdFlush:       cmdFlagFUA,
	cmdTrim:        cmdFlagFUA,
	cmdCache:       cmdFlagFUA,
	cmdWriteZeroes: cmdFlagFUA | cmdFlagNoHole | cmdFlagFastZero,
	cmdBlockStatus: cmdFlagFUA | cmdFlagReqOne,
}

// check returns what is wrong with a request, or 0.
func (s *session) check(r *request) (Errno, string) {
	if int(r.cmd) >= len(known) {
		return EINVAL, "unknown command"
	}
	if s.closing.Load() {
		return ESHUTDOWN, ""
	}
	if r.flags&^known[r.cmd] != 0 || r.flags&cmdFlagDF != 0 && !s.structured {
		return EINVAL, "unknown flags"
	}
	changes := r.cmd == cmdWrite || r.cmd == cmdWriteZeroes
	if s.exp.ReadOnly && (changes || r.cmd == cmdTrim) {
		return EPERM, "the export is read-only"
	}
	if r.cmd == cmdTrim && s.trim == nil || r.cmd == cmdCache && s.cache == nil || r.cmd == cmdBlockStatus && len(s.contexts) == 0 {
		return EINVAL, "this was not offered"
	}
	if r.cmd == cmdFlush {
		if r.off != 0 || r.length != 0 {
			return EINVAL, "a flush has no range"
		}
		return 0, ""
	}
	if end, ok := r.end(); !ok || end > s.size {
		if changes {
			return ENOSPC, "beyond the end of the disk"
		}
		return EINVAL, "beyond the end of the disk"
	}
	if (r.off|uint64(r.length))&uint64(s.exp.MinBlock-1) != 0 {
		return EINVAL, "not a multiple of the smallest block"
	}
	if r.length > s.exp.MaxPayload && (r.cmd == cmdRead || r.cmd == cmdWrite) {
		return EINVAL, "longer than the largest payload"
	}
	if r.length == 0 && r.cmd == cmdBlockStatus {
		return EINVAL, "a block status needs a length"
	}
	return 0, ""
}

// skipPayload reads over the payload of a request that is refused.
func (s *session) skipPayload(t *turn) error {
	if t.req.cmd != cmdWrite {
		return nil
	}
	left := int64(t.req.length)
	if left > maxSkipped {
		return snapferry.Errorf(snapferry.Invalid, "the client sends a write of %d bytes", left)
	}
	for {
		n := min(left, int64(t.w-t.r))
		t.r += int(n)
		left -= n
		if left == 0 {
			return nil
		}
		if err := s.more(t); err != nil {
			return err
		}
	}
}

// more reads what is missing of a message that has begun; the input is empty.
func (s *session) more(t *turn) error {
	if err := s.flush(t); err != nil {
		return err
	}
	if err := s.fill(t); err != errDisconnect {
		return err
	}
	if s.closing.Load() {
		return errDisconnect
	}
	return io.ErrUnexpectedEOF
}

func (s *session) replyDone(t *turn) error {
	if err := s.room(t, chunkSize); err != nil {
		return err
	}
	t.out = s.appendDone(t.out, &t.req)
	return nil
}

// appendDone appends the reply of a request that succeeded and returns no data.
func (s *session) appendDone(p []byte, r *request) []byte {
	if s.structured && (r.cmd == cmdRead || r.cmd == cmdBlockStatus) {
		return appendChunk(p, r.cookie, chunkDone, chunkNone, 0)
	}
	return appendSimple(p, r.cookie, 0)
}

func (s *session) replyError(t *turn, e Errno, why string) error {
	if err := s.room(t, chunkSize+6+len(why)); err != nil {
		return err
	}
	t.out = s.appendError(t.out, t.req.cookie, e, why)
	return nil
}

func (s *session) appendError(p []byte, cookie uint64, e Errno, why string) []byte {
	if s.structured {
		return appendErrorChunk(p, cookie, e, why)
	}
	return appendSimple(p, cookie, e)
}

// finish makes the reply of a request without data, which did or failed.
func (s *session) finish(p []byte, r *request, err error) []byte {
	if err != nil {
		e, why := fault(err)
		return s.appendError(p, r.cookie, e, why)
	}
	return s.appendDone(p, r)
}

// smallRead reads straight into the output, behind the header of the reply, or
// hands the request over.
func (s *session) smallRead(t *turn) error {
	r := &t.req
	if s.now == nil || s.strays.Load() != 0 || s.spread(t, 0) {
		return s.hand(t)
	}
	t.own++
	n := int(r.length)
	if err := s.room(t, dataChunkSize+n); err != nil {
		return err
	}
	if s.isHole(r) {
		t.out = appendHoleChunk(t.out, r.cookie, chunkDone, r.off, n)
		return nil
	}
	if s.structured {
		t.out = appendDataChunk(t.out, r.cookie, chunkDone, r.off, n)
	} else {
		t.out = appendSimple(t.out, r.cookie, 0)
	}
	at := len(t.out)
	t.out = t.out[:at+n]
	began := s.watch.begin(t)
	done, err := s.now.ReadNow(t.out[at:], int64(r.off))
	passed := !s.watch.end(began)
	switch {
	case passed && (!done || err != nil):
		if err == nil {
			err = s.readAll(t.out[at:], int64(r.off))
		}
		if err != nil {
			t.out = s.finish(t.out[:t.mark], r, err)
		}
	case !done && err == nil:
		t.out = t.out[:t.mark]
		return s.hand(t)
	case err != nil:
		t.out = s.finish(t.out[:t.mark], r, err)
	}
	if passed {
		return s.stray(t)
	}
	return nil
}

// spread reports whether a small read or write is better done by a worker,
// because they take long and another one is waiting.
func (s *session) spread(t *turn, payload int) bool {
	return s.pace > slowPace && t.w-t.r >= payload+requestSize
}

// isHole reports whether a small read may be answered by one chunk of a hole.
func (s *session) isHole(r *request) bool {
	if s.holes == nil || !s.structured {
		return false
	}
	n, hole := s.holes.Hole(int64(r.off), int64(r.length))
	return hole && n >= int64(r.length)
}

// smallWrite writes the payload that lies in the input, or hands it over.
func (s *session) smallWrite(t *turn) error {
	r := &t.req
	n := int(r.length)
	fua := r.flags&cmdFlagFUA != 0
	if fua && t.r+n == t.w && s.work.idle() && s.strays.Load() == 0 && s.careful == 0 {
		return s.own(t)
	}
	if fua || s.now == nil || s.strays.Load() != 0 || s.spread(t, n) {
		return s.hand(t)
	}
	t.own++
	if err := s.room(t, chunkSize+6+maxString); err != nil {
		return err
	}
	p := t.in[t.r : t.r+n]
	t.r += n
	began := s.watch.begin(t)
	done, err := s.now.WriteNow(p, int64(r.off))
	passed := !s.watch.end(began)
	if !done && err == nil {
		if !passed {
			t.r -= n
			return s.hand(t)
		}
		_, err = s.dev.WriteAt(p, int64(r.off))
	}
	t.out = s.finish(t.out, r, err)
	if passed {
		return s.stray(t)
	}
	return nil
}

// own does a request that may wait while nothing else is to do: a switch to a
// worker would cost more than most of them.
func (s *session) own(t *turn) error {
	r := &t.req
	if err := s.room(t, chunkSize+6+maxString); err != nil {
		return err
	}
	var p []byte
	if r.cmd == cmdWrite {
		p = t.in[t.r : t.r+int(r.length)]
		t.r += int(r.length)
	}
	began := s.watch.begin(t)
	err := s.do(r, p)
	passed := !s.watch.end(began)
	t.out = s.finish(t.out, r, err)
	if passed {
		return s.stray(t)
	}
	return nil
}

// stray sends the one reply of a turn that was passed.
func (s *session) stray(t *turn) error {
	s.send(t.out[t.mark:]) // a failure ends the session by itself
	s.strays.Add(-1)
	return errPassed
}

// passTurn is called by the watchdog, which has taken the turn from t.
func (s *session) passTurn(t *turn) {
	s.strays.Add(1)
	s.careful = caution
	n := t.pass()
	s.turns.Go(func() { s.serve(n) })
}
