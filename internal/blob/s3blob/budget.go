package s3blob

import (
	"context"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
)

// refill is how many tokens a budget gets back each second, whatever happens:
// after a long outage further attempts are possible again before hundreds of
// requests have succeeded, and during one they are few.
const refill = 10

// budget is a bucket of tokens from which all further attempts of a driver are
// paid. It implements retry.RateLimiter.
type budget struct {
	mu     sync.Mutex
	tokens float64
	max    float64
	last   time.Time // of the last refill
}

func newBudget(tokens uint) *budget {
	return &budget{tokens: float64(tokens), max: float64(tokens), last: time.Now()}
}

// GetToken takes tokens, which release gives back, or fails when there are too
// few.
func (b *budget) GetToken(ctx context.Context, cost uint) (release func() error, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.tokens = min(b.max, b.tokens+now.Sub(b.last).Seconds()*refill)
	b.last = now
	if b.tokens < float64(cost) {
		return nil, ratelimit.QuotaExceededError{Available: uint(b.tokens), Requested: cost}
	}
	b.tokens -= float64(cost)
	return func() error { return b.AddTokens(cost) }, nil
}

// AddTokens gives tokens back.
func (b *budget) AddTokens(n uint) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tokens = min(b.max, b.tokens+float64(n))
	return nil
}
