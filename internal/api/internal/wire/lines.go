package wire

import (
	"bufio"
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/snapferry/snapferry"
)

const (
	// flushDelay is the longest that a line waits in the buffer.
	flushDelay = 200 * time.Millisecond
	lineBuffer = 32 << 10
)

// lines writes a stream of JSON lines. A line is on its way within flushDelay
// of emit; the buffer makes many small lines few writes.
type lines struct {
	rc     *http.ResponseController
	cancel context.CancelCauseFunc // told when the caller does not read

	mu     sync.Mutex
	buf    *bufio.Writer
	timer  *time.Timer // flushes; nil when nothing waits
	err    error       // of an earlier write
	closed bool
}

// newLines begins a stream, which the caller sees at once.
func newLines(w http.ResponseWriter, cancel context.CancelCauseFunc) *lines {
	l := &lines{rc: http.NewResponseController(w), cancel: cancel}
	l.buf = bufio.NewWriterSize(deadlined{w, l.rc}, lineBuffer)
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flush()
	return l
}

// deadlined gives each write its own deadline.
type deadlined struct {
	w  http.ResponseWriter
	rc *http.ResponseController
}

func (d deadlined) Write(p []byte) (int, error) {
	// Not every writer has deadlines; a server's has.
	_ = d.rc.SetWriteDeadline(time.Now().Add(patience))
	return d.w.Write(p)
}

// emit adds a line.
func (l *lines) emit(v any) error {
	p, err := encode(v)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return snapferry.Errorf(snapferry.Internal, "a line after the end of a stream")
	}
	if l.err != nil {
		return l.err
	}
	if _, err := l.buf.Write(p); err != nil {
		return l.lost(err)
	}
	if l.timer == nil {
		l.timer = time.AfterFunc(flushDelay, l.tick)
	}
	return nil
}

func (l *lines) tick() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.timer = nil
	if !l.closed && l.err == nil {
		l.flush()
	}
}

// flush is called with mu held.
func (l *lines) flush() {
	err := l.buf.Flush()
	if err == nil {
		_ = l.rc.SetWriteDeadline(time.Now().Add(patience))
		err = l.rc.Flush()
	}
	if err != nil {
		_ = l.lost(err)
	}
}

// lost notes, with mu held, that the caller does not read any more.
func (l *lines) lost(err error) error {
	l.err = snapferry.Errorf(snapferry.Cancelled, "the caller does not read the stream: %w", err)
	l.cancel(l.err)
	return l.err
}

// lostErr is why the caller does not read any more, or nil.
func (l *lines) lostErr() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// close writes what waits. The stream is not touched after it.
func (l *lines) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return l.err
	}
	l.closed = true
	if l.timer != nil {
		l.timer.Stop()
	}
	if l.err == nil {
		l.flush()
	}
	return l.err
}
