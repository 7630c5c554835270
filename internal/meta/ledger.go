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
	return tx.run(usageInsert, []any{string(u.Account), u.Kind, u.Subject, u.Bytes, millis(u.At)}, "add usage of %s", u.Subject)
}

// Usage returns the metered facts about a subject, in the order they were
// added.
func (tx *Tx) Usage(subject string) ([]Usage, error) {
	return list(tx, usageOfSubject, func(r scanner, u *Usage) error {
		return r.Scan(&u.ID, &u.Account, &u.Kind, &u.Subject, &u.Bytes, timeColumn{&u.At})
	}, "usage", subject)
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
