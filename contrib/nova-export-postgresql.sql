-- What Nova's database knows of machines, for "shisa base scan --nova" (doc/formats/nova-export.md).
-- PostgreSQL. In one transaction, in the database of each cell.

SELECT json_build_object('uuid', uuid, 'host', host, 'image_ref', image_ref, 'deleted', COALESCE(deleted, 0),
    'task_state', task_state, 'created_at', created_at)
  FROM instances WHERE COALESCE(deleted, 0) = 0;

-- A kernel and a first file system, and the image that a disk is put on again after unshelving.
SELECT json_build_object('instance', uuid, 'image', image) FROM (
    SELECT uuid, kernel_id AS image FROM instances WHERE COALESCE(deleted, 0) = 0
    UNION SELECT uuid, ramdisk_id FROM instances WHERE COALESCE(deleted, 0) = 0
    UNION SELECT i.uuid, m.value FROM instance_system_metadata m JOIN instances i ON i.uuid = m.instance_uuid
      WHERE COALESCE(i.deleted, 0) = 0 AND COALESCE(m.deleted, 0) = 0 AND m.key = 'image_base_image_ref'
        AND m.value <> COALESCE(i.image_ref, '')
  ) all_images WHERE image <> '';

-- Disks as they were asked for, and as the flavor has them, by which they are made when a machine is resized.
SELECT json_build_object('instance', uuid, 'disk', disk, 'size', size) FROM (
    SELECT i.uuid, CASE WHEN b.guest_format = 'swap' THEN 'swap' ELSE 'ephemeral' END AS disk, b.volume_size AS size
      FROM block_device_mapping b JOIN instances i ON i.uuid = b.instance_uuid
      WHERE COALESCE(i.deleted, 0) = 0 AND COALESCE(b.deleted, 0) = 0
        AND b.source_type = 'blank' AND b.destination_type = 'local'
    UNION SELECT uuid, 'ephemeral', ephemeral_gb FROM instances WHERE COALESCE(deleted, 0) = 0
    UNION SELECT i.uuid, 'swap', (e.flavor::json #>> '{cur,nova_object.data,swap}')::bigint
      FROM instance_extra e JOIN instances i ON i.uuid = e.instance_uuid
      WHERE COALESCE(i.deleted, 0) = 0 AND COALESCE(e.deleted, 0) = 0
  ) all_disks WHERE size > 0;

-- How many lines of each there are: one that is lost, or the end, is told by that.
SELECT json_build_object('instances', (SELECT COUNT(*) FROM instances WHERE COALESCE(deleted, 0) = 0),
  'images', (SELECT COUNT(*) FROM (
    SELECT uuid, kernel_id AS image FROM instances WHERE COALESCE(deleted, 0) = 0
    UNION SELECT uuid, ramdisk_id FROM instances WHERE COALESCE(deleted, 0) = 0
    UNION SELECT i.uuid, m.value FROM instance_system_metadata m JOIN instances i ON i.uuid = m.instance_uuid
      WHERE COALESCE(i.deleted, 0) = 0 AND COALESCE(m.deleted, 0) = 0 AND m.key = 'image_base_image_ref'
        AND m.value <> COALESCE(i.image_ref, '')
  ) all_images WHERE image <> ''),
  'disks', (SELECT COUNT(*) FROM (
    SELECT i.uuid, CASE WHEN b.guest_format = 'swap' THEN 'swap' ELSE 'ephemeral' END AS disk, b.volume_size AS size
      FROM block_device_mapping b JOIN instances i ON i.uuid = b.instance_uuid
      WHERE COALESCE(i.deleted, 0) = 0 AND COALESCE(b.deleted, 0) = 0
        AND b.source_type = 'blank' AND b.destination_type = 'local'
    UNION SELECT uuid, 'ephemeral', ephemeral_gb FROM instances WHERE COALESCE(deleted, 0) = 0
    UNION SELECT i.uuid, 'swap', (e.flavor::json #>> '{cur,nova_object.data,swap}')::bigint
      FROM instance_extra e JOIN instances i ON i.uuid = e.instance_uuid
      WHERE COALESCE(i.deleted, 0) = 0 AND COALESCE(e.deleted, 0) = 0
  ) all_disks WHERE size > 0));
