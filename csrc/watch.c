/* SPDX-License-Identifier: Apache-2.0
 *
 * watch: the words of shared memory that a spinning wait looks at beside its own. */
#include "backend.h"
#include "bytes.h"
#include "spin.h"

struct look {
	const struct iod_watch *watch;
	uint32_t count;
	int looks;
	bool changed;
};

static void run(void *arg)
{
	struct look *l = arg;
	for (int looks = l->looks; looks > 0 && !l->changed; looks--) {
		for (uint32_t i = 0; i < l->count; i++) {
			uint16_t now = __atomic_load_n(l->watch[i].word, __ATOMIC_RELAXED);
			if ((now ^ l->watch[i].seen) & l->watch[i].mask)
				l->changed = true;
		}
		iod_pause();
	}
}

bool iod_watch_changed(struct iod_backend *b, int looks)
{
	struct look l = {.watch = b->watch, .count = b->watches, .looks = looks};
	uintptr_t fault;
	/* Memory that is gone is a change: whoever owns the word finds out. */
	b->watched = l.count && (!iod_guarded(run, &l, &fault) || l.changed);
	return b->watched;
}
