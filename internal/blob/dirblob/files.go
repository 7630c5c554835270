package dirblob

import (
	"container/list"
	"sync"
)

// fileCache keeps the files read last open.
type fileCache struct {
	limit int
	open  func(name string) (readFile, error)

	mu     sync.Mutex
	byName map[string]*openFile
	recent list.List // of *openFile, the one read last in front
	drops  uint64    // how often drop was called
	closed bool
}

type openFile struct {
	name  string
	file  readFile
	users int
	place *list.Element // nil when not in the cache
}

func (c *fileCache) start(limit int, open func(string) (readFile, error)) {
	c.limit, c.open, c.byName = limit, open, map[string]*openFile{}
}

// acquire returns the file of a name, which stays open until release.
func (c *fileCache) acquire(name string) (*openFile, error) {
	c.mu.Lock()
	f, drops := c.use(name), c.drops
	c.mu.Unlock()
	if f != nil {
		return f, nil
	}
	file, err := c.open(name)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	f = c.use(name)
	spare := file
	var old *openFile
	if f == nil {
		f, spare = &openFile{name: name, file: file, users: 1}, nil
		// A file opened before a drop may be of the object that was dropped.
		if drops == c.drops && !c.closed {
			old = c.add(f)
		}
	}
	c.mu.Unlock()
	if spare != nil {
		spare.Close()
	}
	old.close()
	return f, nil
}

func (c *fileCache) use(name string) *openFile {
	f := c.byName[name]
	if f != nil {
		f.users++
		c.recent.MoveToFront(f.place)
	}
	return f
}

// add returns a file that had to leave and has no users, if any.
func (c *fileCache) add(f *openFile) *openFile {
	c.byName[f.name] = f
	f.place = c.recent.PushFront(f)
	if c.recent.Len() <= c.limit {
		return nil
	}
	return c.evict(c.recent.Back().Value.(*openFile))
}

func (c *fileCache) evict(f *openFile) *openFile {
	delete(c.byName, f.name)
	c.recent.Remove(f.place)
	f.place = nil
	if f.users > 0 {
		return nil
	}
	return f
}

// release ends a use of a file.
func (c *fileCache) release(f *openFile) {
	c.mu.Lock()
	f.users--
	unused := f.users == 0 && f.place == nil
	c.mu.Unlock()
	if unused {
		f.close()
	}
}

// drop forgets the file of a name that was removed.
func (c *fileCache) drop(name string) {
	var old *openFile
	c.mu.Lock()
	c.drops++
	if f := c.byName[name]; f != nil {
		old = c.evict(f)
	}
	c.mu.Unlock()
	old.close()
}

func (c *fileCache) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, f := range c.byName {
		c.evict(f).close()
	}
}

// close closes a file that was only read: there is nothing it could lose.
func (f *openFile) close() {
	if f != nil {
		f.file.Close()
	}
}
