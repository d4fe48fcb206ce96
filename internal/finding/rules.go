// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: The shisa authors

package finding

// Rule is one thing that shisa knows how to find. Each has a page doc/rules/CODE.md.
type Rule struct {
	Code     string
	Name     string
	Severity Severity // unless the finding knows better
	Title    string   // what is wrong, in a few words
	Next     string   // what to do about it
}

// leakNext is what to do about leaks. A wiped entry may look the same, so they are not called harmless
// without a word about that.
const leakNext = "most likely harmless, and not why a machine hangs or does not start; " +
	"shisa repair --leaks frees what is proved to be worthless, qemu-img check -r whatever it is"

// The rules about one qcow2 image.
var (
	QC01 = Rule{"QC01", "qcow2-header", Lost, "the header cannot be used",
		"let nothing open it for writing; " +
			"shisa repair mends fields that are proved, or makes a copy with a new header"}
	QC02 = Rule{"QC02", "qcow2-refcount-low", Danger, "clusters are used more often than their refcount says",
		"stop the machine before it writes again; shisa repair raises the refcounts"}
	QC03 = Rule{"QC03", "qcow2-leak", Waste, "clusters are counted as used but nothing refers to them",
		leakNext}
	QC04 = Rule{"QC04", "qcow2-refcount-zero", Danger, "clusters in use are counted as free",
		"stop the machine before it writes again: the next allocation may overwrite these clusters; " +
			"shisa repair counts them"}
	QC05 = Rule{"QC05", "qcow2-copied", Danger, "COPIED flags contradict the refcounts",
		"stop the machine before it writes again: a wrong flag lets a write change a shared cluster; " +
			"shisa repair puts the flags right"}
	QC06 = Rule{"QC06", "qcow2-cross-link", Lost, "two guest ranges share one cluster",
		"compare the guest ranges with a backup: at most one of them still holds its own data; " +
			"shisa repair keeps further writes apart"}
	QC07 = Rule{"QC07", "qcow2-two-writers", Lost, "two programs wrote to the image at the same time",
		"find the second writer first; shisa repair keeps further writes apart; " +
			"restore the named guest ranges from a backup"}
	QC08 = Rule{"QC08", "qcow2-metadata-overlap", Danger, "guest data points into the image's own metadata",
		"do not start the machine: a write to this guest range destroys metadata; " +
			"shisa repair takes the entry out of use"}
	QC09 = Rule{"QC09", "qcow2-reserved-bits", Danger, "table entries have reserved bits set",
		"let nothing open it for writing; " +
			"shisa repair clears the bits where the rest of the entry is proved"}
	QC10 = Rule{"QC10", "qcow2-misaligned", Lost, "table entries are not cluster aligned",
		"shisa repair aligns entries whose cluster is proved; restore the other guest ranges from a backup"}
	QC11 = Rule{"QC11", "qcow2-past-end", Lost, "table entries point past the end of the file",
		"look for a complete copy: the file was cut, or never copied to its end"}
	QC12 = Rule{"QC12", "qcow2-table-overwritten", Lost, "an L2 table was overwritten by foreign content",
		"do not run qemu-img check -r: it frees what this table mapped; " +
			"shisa repair takes the table out of use and frees nothing"}
	QC13 = Rule{"QC13", "qcow2-lost-mapping", Lost, "data is still there but its mapping was lost",
		"stop the machine; do not run qemu-img check -r: it would punch holes into this data; " +
			"shisa repair puts back what is proved"}
	QC14 = Rule{"QC14", "qcow2-tail-leak", Waste, "leaked clusters at the end, left by a crash",
		leakNext}
	QC15 = Rule{"QC15", "qcow2-refcount-structure", Danger, "the refcount structure itself is damaged",
		"do not start the machine: free space can no longer be told from data; " +
			"shisa repair makes the refcounts anew"}
	QC16 = Rule{"QC16", "qcow2-snapshot-table", Lost, "the table of internal snapshots is damaged",
		"shisa repair mends what is proved and drops no snapshot; qemu-img check -r all drops them silently"}
	QC17 = Rule{"QC17", "qcow2-bitmap", Warning, "a persistent bitmap cannot be trusted",
		"make the next backup a full one"}
	QC18 = Rule{"QC18", "qcow2-compressed", Lost, "compressed clusters cannot be right",
		"shisa repair clears flags that cannot be there; restore what cannot be unpacked from a backup"}
	QC19 = Rule{"QC19", "qcow2-subcluster", Lost, "subcluster bitmaps contradict their entries",
		"compare the guest ranges with a backup; shisa repair tells which flag lets one reading count"}
	QC20 = Rule{"QC20", "qcow2-data-file", Lost, "the external data file is missing or too short",
		"find the data file; the image holds only its map"}
	QC21 = Rule{"QC21", "qcow2-dirty", Warning, "the image was not closed cleanly",
		"if nothing else is found, start the machine: qemu counts anew then; else run shisa repair first"}
	QC22 = Rule{"QC22", "qcow2-corrupt-bit", Danger, "qemu marked the image as corrupt",
		"qemu refuses to write to it; " +
			"shisa repair clears the mark once a check finds nothing else wrong"}
	QC23 = Rule{"QC23", "qcow2-refcount-overflow", Danger, "references exceed what a refcount can hold",
		"shisa repair makes the refcounts wider"}
	QC24 = Rule{"QC24", "qcow2-encryption-header", Lost, "the encryption header lies outside the file",
		"find a backup of the LUKS header: without it nothing can be decrypted"}
	QC25 = Rule{"QC25", "qcow2-remembered", Lost, "an earlier repair knew that guest data is wrong",
		"restore these guest ranges from a backup, then say so with shisa repair IMAGE --resolved RECEIPT"}
	QC26 = Rule{"QC26", "qcow2-unfinished", Danger, "a change of the image was left in the middle",
		"run shisa recover on the image before anything else uses it"}
)

// The rules about chains of images and the files that they live in.
var (
	CH01 = Rule{"CH01", "backing-missing", Lost, "the backing file is not there",
		"find the base image; the overlay holds only what changed"}
	CH02 = Rule{"CH02", "backing-loop", Lost, "the backing chain runs in a circle",
		"find out which image of the circle was renamed or rebased"}
	CH03 = Rule{"CH03", "backing-unreadable", Lost, "the backing file cannot be used",
		"look at the base image first; every overlay on it is hurt"}
	CH04 = Rule{"CH04", "backing-too-deep", Warning, "the backing chain is deeper than is followed",
		"flatten the chain; qemu itself cannot open very deep ones"}
	CH05 = Rule{"CH05", "backing-format", Warning, "the backing file is not of the format that the overlay names",
		"a wrong format shows the guest another disk; compare before the machine is started"}
	CH06 = Rule{"CH06", "backing-not-followed", Note, "the backing file was not examined",
		"name its directory too, or use --follow"}
)

// The rules about base images of pools.
var (
	BI01 = Rule{"BI01", "base-missing", Lost, "a base image that is needed is not there",
		"shisa base missing lists the ways to bring it back, each with its proof; shisa base blame says who removed it"}
	BI02 = Rule{"BI02", "base-unprotected", Note, "base images that are needed have no shield",
		"shisa base protect gives each a second name, which takes no space"}
)

// The rules about reading what guests wrote.
var (
	GR01 = Rule{"GR01", "guest-reader-crash", Warning, "the reader of the guest's disk ended before its time",
		"keep the disk and report it with the message; do not mount it on a host: what ends a reader may " +
			"be made to"}
)

// Rules lists every rule, for documents and tests: those of images first, then the doctor's.
func Rules() []Rule {
	return append([]Rule{
		BI01, BI02,
		CH01, CH02, CH03, CH04, CH05, CH06,
		GR01,
		QC01, QC02, QC03, QC04, QC05, QC06, QC07, QC08, QC09, QC10, QC11, QC12,
		QC13, QC14, QC15, QC16, QC17, QC18, QC19, QC20, QC21, QC22, QC23, QC24,
		QC25, QC26,
	}, doctorRules()...)
}
