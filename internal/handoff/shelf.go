package handoff

import (
	"crypto/rand"
	"encoding/hex"
	"os"
	"sync"
	"time"

	"github.com/snapferry/snapferry"
)

const (
	maxFiles = 64
	keep     = 60 * time.Second
)

// A shelf keeps files until they are taken or their time is over.
type shelf struct {
	mu     sync.Mutex
	files  map[string]kept // by handle; nil once closed; guarded by mu
	onDrop func()          // called when a file's time was over; may be nil
}

type kept struct {
	file  *os.File
	timer *time.Timer
}

func newShelf(onDrop func()) *shelf { return &shelf{files: map[string]kept{}, onDrop: onDrop} }

// put keeps f, which belongs to the shelf from here on, and closes it when it
// cannot: Full when there are too many.
func (s *shelf) put(f *os.File) (handle string, err error) {
	var b [handleBytes]byte
	rand.Read(b[:])
	handle = hex.EncodeToString(b[:])
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.files == nil {
		f.Close()
		return "", snapferry.Errorf(snapferry.Unavailable, "the region is shutting down")
	}
	if len(s.files) >= maxFiles {
		f.Close()
		return "", snapferry.Errorf(snapferry.Full, "%d files wait to be used, which is the limit", maxFiles).WithHint("try again in a minute")
	}
	s.files[handle] = kept{file: f, timer: time.AfterFunc(keep, func() { s.drop(handle) })}
	return handle, nil
}

// take returns a file, once.
func (s *shelf) take(handle string) (*os.File, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, ok := s.files[handle]
	if !ok {
		return nil, false
	}
	delete(s.files, handle)
	k.timer.Stop()
	return k.file, true
}

func (s *shelf) drop(handle string) {
	f, ok := s.take(handle)
	if !ok {
		return
	}
	f.Close()
	if s.onDrop != nil {
		s.onDrop()
	}
}

// close closes what is there and refuses what comes.
func (s *shelf) close() {
	s.mu.Lock()
	files := s.files
	s.files = nil
	s.mu.Unlock()
	for _, k := range files {
		k.timer.Stop()
		k.file.Close()
	}
}
