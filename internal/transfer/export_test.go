package transfer

// MaxNodes is for tests.
const MaxNodes = maxNodes

// Beyond is what all have beyond the least.
func (m *Memory) Beyond() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.beyond
}
