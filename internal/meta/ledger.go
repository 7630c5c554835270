package meta

import "github.com/snapferry/snapferry"

// InsertRequest remembers the answer to a request; Exists when its token is
// taken.
func (tx *Tx) InsertRequest(r Request) error {
	return tx.run(requestInsert, []any{string(r.Account), r.Token, r.Operation, r.Fingerprint, r.Result, millis(r.Created)}, "remember request %s", r.Token)
}

// Request returns the remembered answer to a request.
func (tx *Tx) Request(account snapferry.AccountID, token string) (Request, error) {
	return get(tx, requestGet, func(r scanner, v *Request) error {
		return r.Scan(&v.Account, &v.Token, &v.Operation, &v.Fingerprint, &v.Result, timeColumn{&v.Created})
	}, "request", token, string(account), token)
}

// AddUsage adds a metered fact.
func (tx *Tx) AddUsage(u Usage) error {
	return tx.run(usageInsert, []any{string(u.Account), u.Kind, u.Subject, u.Bytes, millis(u.At), string(u.Copy), string(u.Outcome), u.Count, millis(u.From)}, "add usage of %s", u.Subject)
}

func scanUsage(r scanner, u *Usage) error {
	return r.Scan(&u.ID, &u.Account, &u.Kind, &u.Subject, &u.Bytes, timeColumn{&u.At}, &u.Copy, &u.Outcome, &u.Count, timeColumn{&u.From})
}

// Usage returns the metered facts about a subject, in the order they were
// added.
func (tx *Tx) Usage(subject string) ([]Usage, error) {
	return list(tx, usageOfSubject, scanUsage, "usage", subject)
}

// UsageOf returns the metered facts of an account that were added after the one
// with an id, at most limit (0: all).
func (tx *Tx) UsageOf(account snapferry.AccountID, after int64, limit int) ([]Usage, error) {
	return list(tx, usageOfAccount, scanUsage, "usage", string(account), after, orAll(limit))
}

// PutLimit sets what may cross for a scope.
func (tx *Tx) PutLimit(l Limit) error {
	return tx.run(limitPut, []any{l.Scope, l.Value, millis(l.Set)}, "set the limit of %s", l.Scope)
}

// DeleteLimit takes the limit of a scope away; what is not there is no error.
func (tx *Tx) DeleteLimit(scope string) error {
	return tx.run(limitDelete, []any{scope}, "take away the limit of %s", scope)
}

// Limits returns all limits, by scope.
func (tx *Tx) Limits() ([]Limit, error) {
	return list(tx, limitList, func(r scanner, l *Limit) error { return r.Scan(&l.Scope, &l.Value, timeColumn{&l.Set}) }, "limits")
}

// AddAudit adds a line of who did what.
func (tx *Tx) AddAudit(a Audit) error {
	return tx.run(auditInsert, []any{millis(a.At), string(a.Account), a.Action, a.Subject, a.Detail}, "add an audit line of %s", a.Subject)
}

// AuditOf returns who did what to a subject, in the order it was added.
func (tx *Tx) AuditOf(subject string) ([]Audit, error) {
	return list(tx, auditOfSubject, scanAudit, "audit lines", subject)
}

func scanAudit(r scanner, a *Audit) error {
	return r.Scan(&a.ID, timeColumn{&a.At}, &a.Account, &a.Action, &a.Subject, &a.Detail)
}
