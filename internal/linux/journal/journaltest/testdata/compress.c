/* SPDX-License-Identifier: Apache-2.0 */
/* SPDX-FileCopyrightText: The shisa authors */

/* Loaded before systemd's own library: what is to be compressed with zstd goes to TO, another of its
 * compressors. Each gives back what it compressed with, or that it could not. */
#include <stddef.h>
#include <stdint.h>

int TO(const void *src, uint64_t src_size, void *dst, size_t dst_room, size_t *dst_size);

int compress_blob_zstd(const void *src, uint64_t src_size, void *dst, size_t dst_room, size_t *dst_size)
{
	return TO(src, src_size, dst, dst_room, dst_size);
}
