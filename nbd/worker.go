package nbd

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"github.com/snapferry/snapferry"
)

const (
	// queued is how many requests for each worker a session has read at most.
	queued = 2
	// payloads is how many bytes of payload of a session are in work at most.
	payloads = 2 * MaxPayload
	// maxParts is how many chunks of data and holes a read is answered with at
	// most.
	maxParts = 64
	// smallestHole is the smallest hole in bytes that becomes a chunk.
	smallestHole = 4096
	// zeroStep is how many bytes of zeroes are written at a time.
	zeroStep = 1 << 20
)

// workers do what waits. A worker starts when there is more to do than workers
// wait for, and ends with the session.
type workers struct {
	s       *session
	max     int
	running int          // of who has the turn
	waiting atomic.Int32 // workers that wait for a job
	busy    atomic.Int32 // jobs that are not done
	jobs    chan *job
	free    chan *job // those that are not in use: their number is the limit
	all     sync.WaitGroup
	budget  budget
}

// job is a request in work.
type job struct {
	req   request
	buf   *buffer // payload of a write, or for that of a read; else nil
	reply []byte
}

func (w *workers) start(s *session, n int) {
	w.s, w.max = s, n
	w.jobs, w.free = make(chan *job, n*queued), make(chan *job, n*queued)
	for range n * queued {
		w.free <- new(job)
	}
	w.budget.start(payloads)
}

// stop waits until all that was handed over is done. Nobody has the turn any
// more.
func (w *workers) stop() {
	close(w.jobs)
	w.all.Wait()
}

// idle reports whether nothing is in work.
func (w *workers) idle() bool { return w.busy.Load() == 0 }

func (w *workers) put(j *job) {
	w.busy.Add(1)
	if w.running < w.max && int(w.waiting.Load()) <= len(w.jobs) {
		w.running++
		w.all.Go(w.work)
	}
	w.jobs <- j // there are no more jobs than it takes
}

func (w *workers) work() {
	for {
		w.waiting.Add(1)
		j, ok := <-w.jobs
		w.waiting.Add(-1)
		if !ok {
			return
		}
		w.s.job(j)
		w.release(j)
	}
}

// release takes a job back that is done, or was never begun.
func (w *workers) release(j *job) {
	if j.buf != nil {
		w.budget.give(len(j.buf.full))
		w.s.buffers.put(j.buf)
		j.buf = nil
	}
	w.free <- j
}

// hand hands the request t.req over to a worker, with its payload. It waits
// while the limits of the session are reached.
func (s *session) hand(t *turn) error {
	var j *job
	select {
	case j = <-s.work.free:
	default:
		if err := s.flush(t); err != nil {
			return err
		}
		j = <-s.work.free
	}
	j.req = t.req
	if j.req.cmd == cmdRead || j.req.cmd == cmdWrite {
		buf := s.buffers.get(int(j.req.length))
		if !s.work.budget.try(len(buf.full)) {
			if err := s.flush(t); err != nil {
				s.work.free <- j
				return err
			}
			s.work.budget.take(len(buf.full))
		}
		j.buf = buf
	}
	if j.req.cmd == cmdWrite {
		if err := s.payload(t, j.buf.data); err != nil {
			s.work.release(j)
			return err
		}
	}
	s.work.put(j)
	return nil
}

// payload reads the payload of a write into p.
func (s *session) payload(t *turn, p []byte) error {
	n := copy(p, t.in[t.r:t.w])
	t.r += n
	if n == len(p) {
		return nil
	}
	if err := s.flush(t); err != nil {
		return err
	}
	for n < len(p) {
		m, err := s.wire.Read(p[n:], !s.work.idle())
		n += m
		if err != nil && n < len(p) {
			if s.closing.Load() {
				return errDisconnect
			}
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// job does a job and sends the reply.
func (s *session) job(j *job) {
	r := &j.req
	j.reply = j.reply[:0]
	var parts net.Buffers
	switch r.cmd {
	case cmdRead:
		var err error
		if parts, err = s.read(j); err != nil {
			parts, j.reply = nil, s.finish(j.reply, r, err)
		}
	case cmdBlockStatus:
		if err := s.blockStatus(j); err != nil {
			j.reply = s.finish(j.reply[:0], r, err)
		}
	default:
		var p []byte
		if j.buf != nil {
			p = j.buf.data
		}
		j.reply = s.finish(j.reply, r, s.do(r, p))
	}
	// The client may see the reply before this goroutine goes on: what it then
	// sends finds nothing in work.
	s.work.busy.Add(-1)
	if parts != nil {
		s.sendParts(parts) // a failure ends the session by itself
		return
	}
	s.send(j.reply)
}

// read reads the data of a job and returns its reply.
func (s *session) read(j *job) (net.Buffers, error) {
	r, p := &j.req, j.buf.data
	if s.holes != nil && s.structured && r.flags&cmdFlagDF == 0 {
		return s.readRuns(j)
	}
	if err := s.readAll(p, int64(r.off)); err != nil {
		return nil, err
	}
	var head [headRoom]byte
	if s.structured {
		return net.Buffers{j.buf.with(appendDataChunk(head[:0], r.cookie, chunkDone, r.off, len(p)))}, nil
	}
	return net.Buffers{j.buf.with(appendSimple(head[:0], r.cookie, 0))}, nil
}

// readRuns reads the data of a job and returns a reply with chunks of data and
// of holes.
func (s *session) readRuns(j *job) (net.Buffers, error) {
	r, p := &j.req, j.buf.data
	j.reply = j.reply[:0]
	if need := maxParts * holeChunkSize; cap(j.reply) < need {
		j.reply = make([]byte, 0, need)
	}
	var parts net.Buffers
	for at := 0; at < len(p); {
		n, hole := s.run1(p, at, int64(r.off), len(parts) < maxParts)
		flags, head, off := uint16(0), len(j.reply), r.off+uint64(at)
		if at+n == len(p) {
			flags = chunkDone
		}
		if hole {
			j.reply = appendHoleChunk(j.reply, r.cookie, flags, off, n)
			parts = append(parts, j.reply[head:])
		} else {
			if err := s.readAll(p[at:at+n], int64(off)); err != nil {
				return nil, err
			}
			j.reply = appendDataChunk(j.reply, r.cookie, flags, off, n)
			parts = append(parts, j.reply[head:], p[at:at+n])
		}
		at += n
	}
	return parts, nil
}

// run1 returns how much of p from at on is one hole, or data that may have small
// holes in it. Without split it is all the rest, and data.
func (s *session) run1(p []byte, at int, off int64, split bool) (n int, hole bool) {
	if !split {
		return len(p) - at, false
	}
	for at+n < len(p) {
		m, h := s.holes.Hole(off+int64(at+n), int64(len(p)-at-n))
		m = min(max(m, 1), int64(len(p)-at-n))
		switch {
		case h && n == 0 && (m >= smallestHole || at+int(m) == len(p)):
			return int(m), true
		case h && n > 0 && m >= smallestHole:
			return n, false
		}
		n += int(m)
	}
	return n, false
}

// readAll reads all of p.
func (s *session) readAll(p []byte, off int64) error {
	n, err := s.dev.ReadAt(p, off)
	if n == len(p) && (err == nil || err == io.EOF) {
		return nil
	}
	if err == nil || err == io.EOF {
		return snapferry.Errorf(snapferry.Internal, "the device ended early")
	}
	return err
}

// do does a request that changes the disk or returns nothing; p is the payload
// of a write.
func (s *session) do(r *request, p []byte) error {
	off, n := int64(r.off), int64(r.length)
	fua := r.flags&cmdFlagFUA != 0
	var err error
	switch r.cmd {
	case cmdFlush:
		return s.dev.Sync()
	case cmdCache:
		return s.cache.Cache(off, n)
	case cmdWrite:
		if fua && s.syncer != nil {
			return s.syncer.WriteSync(p, off)
		}
		_, err = s.dev.WriteAt(p, off)
	case cmdTrim:
		err = s.trim.Trim(off, n)
	case cmdWriteZeroes:
		err = s.zeroes(off, n, r.flags)
	default:
		return EINVAL
	}
	if err == nil && fua {
		err = s.dev.Sync()
	}
	return err
}

func (s *session) zeroes(off, n int64, flags uint16) error {
	if s.zero != nil {
		return s.zero.Zero(off, n, flags&cmdFlagNoHole == 0)
	}
	if flags&cmdFlagFastZero != 0 {
		return ENOTSUP
	}
	zeroes := make([]byte, min(n, zeroStep))
	for n > 0 {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		m := min(n, zeroStep)
		if _, err := s.dev.WriteAt(zeroes[:m], off); err != nil {
			return err
		}
		off, n = off+m, n-m
	}
	return nil
}

// errEnough ends a Status early.
var errEnough = errors.New("enough extents")

// blockStatus makes the chunks of all contexts.
func (s *session) blockStatus(j *job) error {
	for i, c := range s.contexts {
		flags := uint16(0)
		if i == len(s.contexts)-1 {
			flags = chunkDone
		}
		at := len(j.reply)
		j.reply = appendChunk(j.reply, j.req.cookie, flags, chunkStatus, 0)
		j.reply = binary.BigEndian.AppendUint32(j.reply, c.id)
		b := statusBuilder{p: j.reply, from: len(j.reply), left: int64(j.req.length), one: j.req.flags&cmdFlagReqOne != 0}
		err := s.status.Status(s.ctx, c.name, int64(j.req.off), int64(j.req.length), b.add)
		if err != nil && err != errEnough {
			return err
		}
		if len(b.p) == b.from {
			return snapferry.Errorf(snapferry.Internal, "the device reported no extent of %s", c.name)
		}
		j.reply = b.p
		binary.BigEndian.PutUint32(j.reply[at+chunkSize-4:], uint32(len(j.reply)-at-chunkSize))
	}
	return nil
}

// statusBuilder appends the extents of one context. Neighbours with the same
// flags become one; nothing goes beyond the request.
type statusBuilder struct {
	p    []byte
	from int   // where the extents begin
	left int64 // bytes of the request that are not covered
	one  bool  // only the first extent is wanted
}

func (b *statusBuilder) add(length int64, flags uint32) error {
	if length < 1 {
		return snapferry.Errorf(snapferry.Internal, "the device reported an extent of %d bytes", length)
	}
	length = min(length, b.left)
	n := len(b.p)
	if n > b.from && binary.BigEndian.Uint32(b.p[n-4:]) == flags {
		// The sum is at most the length of the request, which has 32 bits.
		binary.BigEndian.PutUint32(b.p[n-8:], binary.BigEndian.Uint32(b.p[n-8:])+uint32(length))
	} else {
		if b.one && n > b.from || (n-b.from)/8 == maxExtents {
			return errEnough
		}
		b.p = binary.BigEndian.AppendUint32(b.p, uint32(length))
		b.p = binary.BigEndian.AppendUint32(b.p, flags)
	}
	b.left -= length
	if b.left == 0 {
		return errEnough
	}
	return nil
}

// budget is a number of bytes that are taken and given back.
type budget struct {
	mu    sync.Mutex
	freed sync.Cond
	left  int
}

func (b *budget) start(n int) { b.left, b.freed.L = n, &b.mu }

// try takes n bytes if they are there.
func (b *budget) try(n int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n > b.left {
		return false
	}
	b.left -= n
	return true
}

// take waits for n bytes and takes them.
func (b *budget) take(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for n > b.left {
		b.freed.Wait()
	}
	b.left -= n
}

func (b *budget) give(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left += n
	b.freed.Signal()
}
