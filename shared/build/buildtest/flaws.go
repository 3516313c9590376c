package buildtest

// Flaw is a defect that a fake can be made with. Each breaks a promise of an
// interface that the product relies on.
type Flaw string

// The flaws of records.
const (
	CreateOverwrites   Flaw = "Create overwrites a living record"
	CreateRaces        Flaw = "Create looks first and stores later"
	CreateBlocked      Flaw = "Create fails over an expired record"
	NoCompareAndSwap   Flaw = "Replace does not compare revisions"
	ReplaceRaces       Flaw = "Replace compares first and stores later"
	ReplaceRevives     Flaw = "Replace stores over an expired record"
	RevisionStays      Flaw = "Replace does not raise the revision"
	ExpiredRead        Flaw = "Get returns expired records"
	ForeignWhole       Flaw = "Get and Due return all of what another version stored"
	StaleRead          Flaw = "Get returns what it read before while the revision is the same"
	DeleteUnchecked    Flaw = "Delete does not compare revisions"
	DeleteGoneFails    Flaw = "Delete fails if the record is gone"
	DeleteNotExpired   Flaw = "Delete does not see expired records"
	DueUnsorted        Flaw = "Due returns the latest first"
	DueUnlimited       Flaw = "Due returns more than asked for"
	DueSkipsExpired    Flaw = "Due leaves out expired records"
	DueEverything      Flaw = "Due returns what is due later"
	DueExclusive       Flaw = "Due leaves out what is due right now"
	BoardRaces         Flaw = "Board reads first and stores later"
	BoardMaxFirst      Flaw = "Board applies max before add"
	BoardPartial       Flaw = "Board returns only what changed"
	BoardSharedByNames Flaw = "Board has one item for all names"
	BelowIgnored       Flaw = "Board does not look at Below"
	BelowAfter         Flaw = "Board compares Below after the change"
	BelowMissingFails  Flaw = "a missing counter is below nothing"
	BelowMissingPasses Flaw = "a missing counter is below everything"
	BelowOne           Flaw = "one counter that is below is enough"
	BelowChanges       Flaw = "Board refuses and changes all the same"
	BelowRaces         Flaw = "Board compares Below first and stores later"
)

// The flaws of a queue.
const (
	LosesMessage      Flaw = "Receive removes the message"
	ReceiveLimit      Flaw = "a message received ten times is dropped"
	NotHidden         Flaw = "a received message stays available"
	HiddenForever     Flaw = "a received message never comes back"
	ExtendIgnored     Flaw = "Extend does nothing"
	ExtendZeroIgnored Flaw = "Extend by zero does nothing"
	DeleteIgnored     Flaw = "Delete does nothing"
	StaleReceiptFails Flaw = "an outdated receipt is an error"
	NotWoken          Flaw = "Receive only polls"
	OneWoken          Flaw = "messages sent together wake one receiver"
	IgnoresContext    Flaw = "Receive does not end with its context"
	OtherContextError Flaw = "Receive ends with an error of its own"
	Deduplicates      Flaw = "Send drops an ID that is in flight"
	BulkLost          Flaw = "bulk messages are not delivered"
)

// The flaws of objects.
const (
	PutNotAtomic     Flaw = "Put shows its bytes as they come"
	PutKeepsPart     Flaw = "Put keeps what it read when the reader fails"
	PutOverwrites    Flaw = "Put replaces immutable objects"
	PutRaces         Flaw = "Put looks first and stores later"
	PutEqualFails    Flaw = "Put of equal bytes fails"
	PutKeepsMutable  Flaw = "Put does not replace mutable objects"
	AnyKey           Flaw = "every key is taken"
	BadKeyOtherError Flaw = "a key that cannot be is another error than ErrNotFound"
	ListFolders      Flaw = "List takes its prefix for a folder"
	ListUnsorted     Flaw = "List has an order of its own"
	ListKeysOnly     Flaw = "List tells no sizes"
	ListGoneFails    Flaw = "List fails when an object vanishes"
	DeleteNothing    Flaw = "Delete removes nothing"
	DeleteMissing    Flaw = "Delete fails if the object is gone"
	SeekBroken       Flaw = "a reader seeks nowhere"
	NoSize           Flaw = "Open tells no size"
)

// flaws is the set that a fake has.
type flaws map[Flaw]bool

func flawed(list []Flaw) flaws {
	set := flaws{}
	for _, f := range list {
		set[f] = true
	}
	return set
}
