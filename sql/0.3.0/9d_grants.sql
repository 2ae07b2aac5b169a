-- What is for the worker and the event triggers alone.
REVOKE EXECUTE ON FUNCTION
    ner_retriever.count_as(oid, text),
    ner_retriever.forget_dependency(oid, oid),
    ner_retriever.follow_owner(integer), ner_retriever.follow_names(integer), ner_retriever.work(integer, integer, boolean),
    ner_retriever.work_on(integer, integer, boolean), ner_retriever.is_whole(integer), ner_retriever.take_up(integer),
    ner_retriever.take_turn(integer), ner_retriever.finish_filling(integer),
    ner_retriever.take_publications(regclass, regclass),
    ner_retriever.unpause(integer), ner_retriever.embed_batch(integer, integer),
    ner_retriever.embed_claimed(integer, tid[]), ner_retriever.fail(tid, text, text), ner_retriever.compact_queue(),
    ner_retriever.compare_some(integer), ner_retriever.before_column_change(oid),
    ner_retriever.before_type_change(oid), ner_retriever.after_column_change(oid), ner_retriever.after_tree_change(oid),
    ner_retriever.request_pass(integer), ner_retriever.arrive(), ner_retriever.tell_last_error(text)
FROM PUBLIC;

-- The triggers of 0.2.0 went with the foreign keys.
SELECT ner_retriever.create_triggers(i.id), ner_retriever.adopt(i.id), ner_retriever.wake()
FROM ner_retriever.managed_index AS i WHERE i.key IS NOT NULL ORDER BY i.id;
UPDATE ner_retriever.managed_index AS i
SET readers = ARRAY(SELECT ner_retriever.readers(b.relacl) INTERSECT SELECT ner_retriever.readers(m.relacl)
                    EXCEPT SELECT pg_get_userbyid(b.relowner))
FROM pg_class AS b, pg_class AS m WHERE b.oid = i.base AND m.oid = i.mentions;
